"""Reading an InternLM v1 folder: values, laziness, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoint.breakable import Breakable
from workbench.checkpoint import hf_names
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError
from workbench.model.weights import DenseWeight

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_the_stacked_projections(random_model_dir: Callable[..., Path], bias: bool) -> None:
    folder = random_model_dir(kv_heads=2, bias=bias)
    stored = load_file(folder / "model.safetensors")
    weights = HFCheckpoint.open(folder).weights(torch.float32)
    layer, prefix = weights.layers[1], "model.layers.1."
    assert isinstance(layer.qkv, DenseWeight)
    assert isinstance(layer.o, DenseWeight)
    assert isinstance(layer.gate_up, DenseWeight)
    attention = [stored[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(layer.qkv.weight, torch.cat(attention))
    assert torch.equal(
        layer.gate_up.weight, torch.cat([stored[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up")])
    )
    assert torch.equal(layer.attention_norm, stored[f"{prefix}input_layernorm.weight"])
    assert torch.equal(layer.mlp_norm, stored[f"{prefix}post_attention_layernorm.weight"])
    assert layer.gate_up.bias is None
    if not bias:
        assert layer.qkv.bias is None
        assert layer.o.bias is None
        return
    assert layer.qkv.bias is not None
    assert layer.o.bias is not None
    assert torch.equal(layer.qkv.bias, torch.cat([stored[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv"]))
    assert torch.equal(layer.o.bias, stored[f"{prefix}self_attn.o_proj.bias"])


def test_weights_come_in_the_dtype_asked_for(model: Breakable) -> None:
    weights = HFCheckpoint.open(model.folder).weights(torch.bfloat16)
    assert weights.embedding is not None
    assert weights.embedding.dtype == torch.bfloat16
    assert isinstance(weights.layers[0].qkv, DenseWeight)
    assert weights.layers[0].qkv.bias is not None
    assert weights.layers[0].qkv.bias.dtype == torch.bfloat16


def test_layers_are_a_sequence(model: Breakable) -> None:
    layers = HFCheckpoint.open(model.folder).weights(torch.float32).layers
    assert len(layers) == len(list(layers)) == len(layers[:]) == 2
    assert torch.equal(layers[-1].attention_norm, layers[1].attention_norm)
    with pytest.raises(IndexError):
        layers[2]


def test_shards_give_the_same_weights(random_model_dir: Callable[..., Path]) -> None:
    whole = HFCheckpoint.open(random_model_dir(kv_heads=2))
    shards = HFCheckpoint.open(random_model_dir(kv_heads=2, shard_bytes=50_000))
    assert len(set(shards.files.values())) > 3
    for name in hf_names.tensor_shapes(whole.config):
        assert torch.equal(whole.tensor(name), shards.tensor(name))


def test_a_tied_head_is_the_embedding(model: Breakable) -> None:
    model.edit_config(tie_word_embeddings=True)
    model.edit_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    checkpoint = HFCheckpoint.open(model.folder)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))


def test_the_fingerprint_tells_models_apart(model: Breakable) -> None:
    before = HFCheckpoint.open(model.folder).fingerprint()
    assert HFCheckpoint.open(model.folder).fingerprint() == before
    model.edit_config(rms_norm_eps=1e-5)
    assert HFCheckpoint.open(model.folder).fingerprint() != before


def test_a_folder_that_is_gone_meanwhile_has_no_fingerprint(model: Breakable) -> None:
    source = HFCheckpoint.open(model.folder)
    shutil.rmtree(model.folder)
    with pytest.raises(CheckpointError, match="was moved or deleted meanwhile; put the folder back, and try again"):
        source.fingerprint()


# ---- what is refused


def test_no_weights(model: Breakable) -> None:
    (model.folder / model.weights).unlink()
    with pytest.raises(
        CheckpointError, match=r"has no weights; allowed: model\.safetensors, or model\.safetensors\.index"
    ):
        HFCheckpoint.open(model.folder)


def test_a_truncated_file(model: Breakable) -> None:
    path = model.folder / model.weights
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated: it has \d+ bytes; allowed: \d+ bytes"):
        HFCheckpoint.open(model.folder)


def test_a_missing_tensor(model: Breakable) -> None:
    model.edit_tensors(lambda tensors: tensors.pop(Q_PROJ))
    checkpoint = HFCheckpoint.open(model.folder)
    for read in (lambda: checkpoint.check(), lambda: checkpoint.tensor(Q_PROJ)):
        with pytest.raises(
            CheckpointError, match=rf"model\.safetensors: tensor '{Q_PROJ}' is missing; allowed: one of"
        ) as e:
            read()
        assert str(e.value).endswith(
            "[64, 64], as config.json says; fetch the file again, or the config.json that belongs to it"
        )


def test_a_tensor_that_the_index_lacks(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(random_model_dir(shard_bytes=50_000), tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][Q_PROJ]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors\.index\.json: tensor '{Q_PROJ}' is missing"):
        HFCheckpoint.open(tmp_path / "model").check()


def test_a_file_without_tensors(model: Breakable) -> None:
    model.edit_tensors(lambda tensors: tensors.clear())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'model\.embed_tokens\.weight' is missing"):
        HFCheckpoint.open(model.folder).check()


def test_a_tied_model_without_embedding(model: Breakable) -> None:
    model.edit_config(tie_word_embeddings=True)
    model.edit_tensors(lambda tensors: (tensors.pop("lm_head.weight"), tensors.pop("model.embed_tokens.weight")))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.embed_tokens\.weight' is missing"):
        HFCheckpoint.open(model.folder).tensor("lm_head.weight")


def test_a_missing_bias(model: Breakable) -> None:
    name = Q_PROJ.replace("weight", "bias")
    model.edit_tensors(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is missing"):
        HFCheckpoint.open(model.folder).check()


def test_another_shape(model: Breakable) -> None:
    model.edit_tensors(lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 63)}))
    match = r"model\.safetensors: tensor 'model.*q_proj\.weight' is \[64, 63\]; allowed: \[64, 64\] by config\.json"
    with pytest.raises(CheckpointError, match=match):
        HFCheckpoint.open(model.folder).tensor(Q_PROJ)


def test_another_type(model: Breakable) -> None:
    model.edit_tensors(lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' is torch\.int8; allowed: a float type"):
        HFCheckpoint.open(model.folder).check()


def test_an_unknown_name(model: Breakable) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.wieght'; did you mean 'lm_head\.weight'\?"):
        HFCheckpoint.open(model.folder).tensor("lm_head.wieght")


def test_a_value_that_float16_cannot_hold(model: Breakable) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors[Q_PROJ][3, 4] = -70000

    model.edit_tensors(enlarge)
    layers = HFCheckpoint.open(model.folder).weights(torch.float16).layers
    with pytest.raises(CheckpointError, match=rf"tensor '{Q_PROJ}' holds 70000, which torch\.float16 cannot hold"):
        layers[1]


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_cannot_point_elsewhere(model: Breakable, name: str) -> None:
    _write_index(model.folder, {"lm_head.weight": name})
    with pytest.raises(CheckpointError, match=r"index\.json names the file .*; allowed: files of the same folder"):
        HFCheckpoint.open(model.folder)


def test_an_index_that_names_a_missing_file(model: Breakable) -> None:
    _write_index(model.folder, {"lm_head.weight": "model-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        HFCheckpoint.open(model.folder)


def test_an_index_that_names_a_missing_tensor(model: Breakable) -> None:
    _write_index(model.folder, {"nothing": "model.safetensors"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'nothing' is missing"):
        HFCheckpoint.open(model.folder)
