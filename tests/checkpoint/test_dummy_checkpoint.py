"""A checkpoint that is a config alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.checkpoint.unified import load_checkpoint, verify_checksum
from workbench.errors import CheckpointError
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.model.weights import Int4GroupWeight, SmoothQuantWeight
from workbench.recipe import Int4WeightOnly, Int8KVCache, Recipe, SmoothQuant
from workbench.runtime.session import TorchSession

SMALL = resized(
    PRESETS["internlm2-7b"],
    Sizes(n_layer=2, n_embd=128, n_head=4, n_kv_head=2, inter_size=320, vocab_size=512, n_positions=64),
)


def test_it_loads_anew_with_the_same_weights_and_no_file(tmp_path: Path) -> None:
    made = write_dummy_checkpoint(tmp_path / "dummy", SMALL, Recipe(weights=Int4WeightOnly(group_size=64)), seed=3)
    assert [path.name for path in (tmp_path / "dummy").iterdir()] == ["config.json"]
    loaded = load_checkpoint(tmp_path / "dummy")
    assert (loaded.config, loaded.state, loaded.checksum) == (SMALL, "quantized", made.checksum)
    one, other = made.weights.layers[1].gate_up, loaded.weights.layers[1].gate_up
    assert isinstance(one, Int4GroupWeight)
    assert torch.equal(one.weight, other.weight)
    assert 0 < loaded.held_bytes < 1_000_000
    verify_checksum(tmp_path / "dummy")


def test_static_scales_and_an_int8_cache_run(tmp_path: Path) -> None:
    recipe = Recipe(dtype="float32", weights=SmoothQuant(activation="per_tensor"), kv_cache=Int8KVCache())
    checkpoint = write_dummy_checkpoint(tmp_path / "dummy", SMALL, recipe)
    assert isinstance(checkpoint.weights.layers[0].down, SmoothQuantWeight)
    session = TorchSession.open(checkpoint)
    logits = session.prefill([[1, 2, 3], [4, 5]])
    assert torch.isfinite(logits).all()
    assert 0.01 < logits.std() < 10
    assert torch.isfinite(session.decode(torch.tensor([6, 7]))).all()


def test_a_seed_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_dummy_checkpoint(tmp_path / "dummy", SMALL, Recipe())
    path = tmp_path / "dummy" / "config.json"
    content = json.loads(path.read_text())
    content["workbench"]["source"]["dummy_seed"] = "seven"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"dummy_seed is 'seven'; allowed: a whole number from 0"):
        load_checkpoint(tmp_path / "dummy")
