"""The unified checkpoint: what is written is read back, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoint.breakable import Breakable
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import is_checkpoint, load_checkpoint, verify_checksum
from workbench.errors import CheckpointError
from workbench.model.numerics import quantize_per_channel
from workbench.model.weights import DenseWeight, Int8Weight
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe

QKV = "transformer.layers.1.attention.qkv.weight"


def test_a_dense_checkpoint_is_the_model(model: Breakable, tmp_path: Path) -> None:
    recipe = Recipe(dtype="float32")
    convert(model.folder, recipe, tmp_path / "out")
    loaded, source = load_checkpoint(tmp_path / "out"), HFCheckpoint.open(model.folder)
    assert loaded.config == source.config
    assert loaded.recipe == Recipe(model=str(model.folder), dtype="float32")
    expected = source.weights(torch.float32)
    assert loaded.weights.embedding is not None
    assert expected.embedding is not None
    assert torch.equal(loaded.weights.embedding, expected.embedding)
    for ours, theirs in zip(loaded.weights.layers, expected.layers, strict=True):
        assert torch.equal(ours.attention_norm, theirs.attention_norm)
        assert torch.equal(ours.mlp_norm, theirs.mlp_norm)
        for site in ("qkv", "o", "gate_up", "down"):
            left, right = getattr(ours, site), getattr(theirs, site)
            assert isinstance(left, DenseWeight)
            assert torch.equal(left.weight, right.weight)
            assert (left.bias is None) == (right.bias is None)
            assert left.bias is None or torch.equal(left.bias, right.bias)


def test_int8_is_the_quantized_model(model: Breakable, checkpoint: Breakable) -> None:
    source = HFCheckpoint.open(model.folder).weights(torch.float32)
    for ours, theirs in zip(load_checkpoint(checkpoint.folder).weights.layers, source.layers, strict=True):
        for site in ("qkv", "o", "gate_up", "down"):
            left, right = getattr(ours, site), getattr(theirs, site)
            integers, scale = quantize_per_channel(right.weight)
            assert isinstance(left, Int8Weight)
            assert torch.equal(left.weight, integers)
            assert torch.equal(left.weight_scale, scale)
            assert left.bias is None or torch.equal(left.bias, right.bias.half())
        assert ours.attention_norm.dtype == torch.float16
    assert isinstance(load_checkpoint(checkpoint.folder).weights.lm_head, DenseWeight)


def test_kept_layers_stay_dense(model: Breakable, tmp_path: Path) -> None:
    recipe = Recipe(weights=Int8WeightOnly(), keep=("layers.0.mlp.down", "layers.*.attention.o"))
    weights = convert(model.folder, recipe, tmp_path / "out").weights
    kinds = [(type(layer.down), type(layer.o), type(layer.qkv)) for layer in weights.layers]
    assert kinds == [(DenseWeight, DenseWeight, Int8Weight), (Int8Weight, DenseWeight, Int8Weight)]
    assert isinstance(weights.lm_head, Int8Weight)


def test_gate_and_up_are_joined_without_a_copy(checkpoint: Breakable) -> None:
    layers = load_checkpoint(checkpoint.folder).weights.layers
    first, second = layers[0].gate_up, layers[0].gate_up
    assert isinstance(first, Int8Weight)
    assert isinstance(second, Int8Weight)
    stored = load_file(checkpoint.folder / checkpoint.weights)
    parts = [stored[f"transformer.layers.0.mlp.{name}.weight"] for name in ("fc", "gate")]
    assert torch.equal(first.weight, torch.cat(parts))
    # Two reads of one place in the mapped file; two copies would lie in two places.
    assert first.weight.data_ptr() == second.weight.data_ptr()


def test_the_config_speaks_tensorrt_llms_language(checkpoint: Breakable) -> None:
    config = json.loads((checkpoint.folder / "config.json").read_text())
    assert config["architecture"] == "InternLMForCausalLM"
    assert config["position_embedding_type"] == "rope_gpt_neox"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert config["quantization"]["exclude_modules"] == ["lm_head"]
    assert config["mapping"] == {"world_size": 1, "tp_size": 1, "pp_size": 1}
    assert config["workbench"]["state"] == "quantized"


def test_tensors_have_the_documented_names(checkpoint: Breakable) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoint_format.md").read_text()
    for name in load_file(checkpoint.folder / checkpoint.weights):
        documented = name.replace("layers.0", "layers.N").replace("layers.1", "layers.N")
        assert f"`{documented}`" in page


def test_the_checksum_changes_with_the_weights(model: Breakable, checkpoint: Breakable, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"][3, 5] += 0.5

    recipe = Recipe(weights=Int8WeightOnly())
    same = convert(model.folder, recipe, tmp_path / "same").checksum
    model.edit_tensors(change)
    other = convert(model.folder, recipe, tmp_path / "other").checksum
    assert load_checkpoint(checkpoint.folder).checksum == same != other


def test_verify_sees_a_flipped_bit(checkpoint: Breakable) -> None:
    verify_checksum(checkpoint.folder)
    path = checkpoint.folder / checkpoint.weights
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors has checksum .*; allowed: .*; convert the"):
        verify_checksum(checkpoint.folder)


def test_is_checkpoint(checkpoint: Breakable, model: Breakable, tmp_path: Path) -> None:
    assert is_checkpoint(checkpoint.folder)
    assert not is_checkpoint(model.folder)
    assert not is_checkpoint(tmp_path / "nowhere")


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        ("bos_token_id", 97, "an id of the vocabulary, 0 to 96, or nothing"),
        ("pad_token_id", 1000, "an id of the vocabulary, 0 to 96, or nothing"),
        ("eos_token_ids", [2, 97], "ids of the vocabulary, 0 to 96"),
    ],
)
def test_a_token_beyond_the_vocabulary(checkpoint: Breakable, name: str, stated: Any, expected: str) -> None:
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text())
    config["workbench"][name] = stated
    config["vocab_size"] = 97
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(checkpoint.folder)
    assert f"config.json: workbench.{name} is {stated}; allowed: {expected}" in str(raised.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a folder that 'workbench convert' wrote"):
        load_checkpoint(tmp_path / "nowhere")


def test_another_folder(model: Breakable) -> None:
    told = r"is a Hugging Face model, not a checkpoint of the workbench; convert it first: workbench convert"
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(model.folder)
    (model.folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no checkpoint of the workbench; make one: workbench convert"):
        load_checkpoint(model.folder)
    (model.folder / "config.json").unlink()
    (model.folder / "ranges.safetensors").touch()
    with pytest.raises(CheckpointError, match="holds the ranges of a calibration, and no checkpoint; make one"):
        load_checkpoint(model.folder)


def test_another_version(checkpoint: Breakable) -> None:
    ours = json.loads((checkpoint.folder / "config.json").read_text())["workbench"]
    checkpoint.edit_config(workbench=ours | {"format_version": 2})
    with pytest.raises(CheckpointError, match="has format version 2; allowed: 1; convert the model again"):
        load_checkpoint(checkpoint.folder)


def test_an_illegal_recipe(checkpoint: Breakable) -> None:
    ours = json.loads((checkpoint.folder / "config.json").read_text())["workbench"]
    checkpoint.edit_config(workbench=ours | {"recipe": {"dtyp": "float16"}})
    with pytest.raises(CheckpointError, match=r"config\.json: workbench\.recipe: .*unknown key 'dtyp'"):
        load_checkpoint(checkpoint.folder)


def test_a_dtype_that_is_not_the_recipes(checkpoint: Breakable) -> None:
    checkpoint.edit_config(dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"dtype is 'bfloat16'; allowed: float16 by workbench\.recipe"):
        load_checkpoint(checkpoint.folder)


def test_another_rank(checkpoint: Breakable) -> None:
    with pytest.raises(CheckpointError, match="has no rank 1; allowed: 0 to 0"):
        load_checkpoint(checkpoint.folder, rank=1)


def test_a_missing_file(checkpoint: Breakable) -> None:
    (checkpoint.folder / checkpoint.weights).unlink()
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors is missing"):
        load_checkpoint(checkpoint.folder)


def test_a_truncated_file(checkpoint: Breakable) -> None:
    path = checkpoint.folder / checkpoint.weights
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors is truncated"):
        load_checkpoint(checkpoint.folder)


def test_a_missing_tensor(checkpoint: Breakable) -> None:
    checkpoint.edit_tensors(lambda tensors: tensors.pop(QKV))
    with pytest.raises(CheckpointError, match=rf"tensor '{QKV}' is missing; allowed: I8 \[128, 64\]"):
        load_checkpoint(checkpoint.folder)


def test_another_shape(checkpoint: Breakable) -> None:
    checkpoint.edit_tensors(lambda tensors: tensors.update({QKV: torch.zeros(2, 64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=rf"tensor '{QKV}' is I8 \[2, 64\]; allowed: I8 \[128, 64\]"):
        load_checkpoint(checkpoint.folder)


def test_another_type(checkpoint: Breakable) -> None:
    checkpoint.edit_tensors(lambda tensors: tensors.update({QKV: torch.zeros(128, 64)}))
    with pytest.raises(CheckpointError, match=rf"tensor '{QKV}' is F32 \[128, 64\]; allowed: I8"):
        load_checkpoint(checkpoint.folder)


def test_a_stranger_among_the_tensors(checkpoint: Breakable) -> None:
    checkpoint.edit_tensors(lambda tensors: tensors.update({"adapter": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="tensor 'adapter' is not one of the format"):
        load_checkpoint(checkpoint.folder)


@pytest.mark.parametrize(
    "scaling", [None, {"type": "linear", "factor": 4.0}, {"type": "dynamic", "factor": 6.0}], ids=str
)
def test_rope_scaling_is_kept(model: Breakable, tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    model.edit_config(rotary=..., rope_theta=5e7, rope_scaling=scaling)
    written = convert(model.folder, Recipe(dtype="float32"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rotary_scaling"] == scaling
    assert written.config == HFCheckpoint.open(model.folder).config
    assert (written.config.rope_scaling is None) == (scaling is None)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "yarn", "factor": 2.0}, "rotary_scaling.type is 'yarn'; allowed: 'linear' or 'dynamic'"),
        ({"type": "linear"}, "rotary_scaling.factor is nothing; allowed: a number above 0"),
        ({"type": "linear", "factor": 0.5}, r"rotary_scaling.factor is 0\.5; allowed: a number from 1"),
        ("linear", "rotary_scaling is 'linear'; allowed: an object"),
    ],
)
def test_other_rope_scaling_is_refused(checkpoint: Breakable, scaling: Any, message: str) -> None:
    checkpoint.edit_config(rotary_scaling=scaling)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint.folder)
