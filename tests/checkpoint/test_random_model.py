"""Random models: deterministic, of the stated shape, and within their limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from workbench.checkpoint import hf_names
from workbench.checkpoint.demo import RandomModelSpec, write_random_model
from workbench.checkpoint.hf_names import FORMATS
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, WorkbenchError
from workbench.progress import ProgressEvent


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_random_model(tmp_path / name, RandomModelSpec(seed=seed))
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_shape_and_type(random_model_dir: Callable[..., Path]) -> None:
    folder = random_model_dir(layers=1, hidden=48, heads=6, kv_heads=3, intermediate=80, vocab=131, dtype="bfloat16")
    checkpoint = HFCheckpoint.open(folder)
    checkpoint.check()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(hf_names.tensor_shapes(checkpoint.config))
        assert file.get_tensor("lm_head.weight").shape == (131, 48)
        assert file.get_tensor("model.layers.0.self_attn.v_proj.bias").shape == (24,)
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16


def test_no_bias(random_model_dir: Callable[..., Path]) -> None:
    names = HFCheckpoint.open(random_model_dir(bias=False)).files
    assert not any(name.endswith("bias") for name in names)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_what_its_version_stores(random_model_dir: Callable[..., Path], name: str) -> None:
    folder = random_model_dir(format=name, kv_heads=2)
    checkpoint = HFCheckpoint.open(folder)
    checkpoint.check()
    assert checkpoint.ignored == ()
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(hf_names.stored_shapes(checkpoint.config))
    assert checkpoint.config.qkv_bias is (name == "internlm")


def test_a_tied_head_is_not_stored(random_model_dir: Callable[..., Path]) -> None:
    checkpoint = HFCheckpoint.open(random_model_dir(tied=True))
    assert "lm_head.weight" not in checkpoint.files
    assert checkpoint.tied


def test_activations_stay_near_unit_size(random_model_dir: Callable[..., Path]) -> None:
    checkpoint = HFCheckpoint.open(random_model_dir(hidden=256, heads=4, intermediate=512))
    weight = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")
    assert weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    assert checkpoint.tensor("model.norm.weight").mean().item() == pytest.approx(1, abs=0.03)


def test_shards_stay_below_their_size(random_model_dir: Callable[..., Path]) -> None:
    folder = random_model_dir(shard_bytes=60_000)
    sizes = [path.stat().st_size for path in folder.glob("model-*.safetensors")]
    assert len(sizes) > 1
    assert max(sizes) < 60_000 + 4096  # the header comes on top


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    write_random_model(tmp_path / "m", RandomModelSpec(), report=events.append)
    assert events[-1].done == events[-1].total > 0
    assert {event.unit for event in events} == {"B"}


def test_an_existing_output_is_refused(random_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="exists; add --force"):
        write_random_model(random_model_dir(), RandomModelSpec())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layers": 0}, "layers is 0; allowed: whole numbers from 1"),
        ({"heads": 5}, "heads is 5 for hidden 64; allowed: divisors that leave an even head width"),
        ({"heads": 64}, "heads is 64 for hidden 64"),
        ({"kv_heads": 3}, "kv_heads is 3; allowed: divisors of heads 4"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, float16, bfloat16"),
        ({"format": "internlm4"}, "format is 'internlm4'; allowed: internlm, internlm2, internlm3, llama"),
        ({"shard_bytes": 0}, "shard_bytes is 0; allowed: whole numbers from 1"),
    ],
)
def test_impossible_shapes(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError) as error:
        RandomModelSpec(**choices)
    assert message in str(error.value)
