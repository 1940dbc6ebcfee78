"""Dummy weights in the place of a Hugging Face folder: all that conversion reads works on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.checkpoint import hf_names
from workbench.checkpoint.dummy_model import DummyModel
from workbench.checkpoint.unified import load_checkpoint, verify_checksum
from workbench.errors import CheckpointError
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.model.weights import DenseWeight
from workbench.quantization.calibrated import CalibratedOptions, convert_calibrated, quantize_calibrated
from workbench.quantization.convert import convert
from workbench.quantization.dummy_ranges import dummy_ranges
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

SIZES = Sizes(n_layer=2, n_embd=128, n_head=4, n_kv_head=2, inter_size=320, vocab_size=512, n_positions=64)


@pytest.mark.parametrize("preset", ["internlm-7b", "internlm2-7b", "internlm3-8b"])
def test_every_tensor_of_every_version(preset: str) -> None:
    model = DummyModel(resized(PRESETS[preset], SIZES))
    model.check()
    for name, shape in hf_names.tensor_shapes(model.config).items():
        assert tuple(model.tensor(name).shape) == shape
    layer = model.weights(torch.float32).layers[1]
    assert isinstance(layer.qkv, DenseWeight)
    assert (layer.qkv.bias is not None) == model.config.qkv_bias
    assert layer.qkv.weight.shape == (256, 128)


def test_rows_are_those_of_the_tensor() -> None:
    model = DummyModel(resized(PRESETS["internlm-7b"], SIZES))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(torch.cat(list(model.rows(name, 50))), model.tensor(name))


def test_an_unknown_tensor_names_the_nearest() -> None:
    model = DummyModel(resized(PRESETS["internlm-7b"], SIZES))
    with pytest.raises(CheckpointError, match=r"InternLMForCausalLM has no tensor 'model.norms.weight'; did you mean"):
        model.tensor("model.norms.weight")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(weights=Int8WeightOnly(), keep=()),
        Recipe(dtype="bfloat16", weights=Int4WeightOnly(group_size=64)),
        Recipe(weights=SmoothQuant(activation="per_tensor"), kv_cache=Int8KVCache()),
    ],
)
def test_every_mode_converts(recipe: Recipe, tmp_path: Path) -> None:
    model = DummyModel(resized(PRESETS["internlm2-7b"], SIZES))
    made = convert(model, recipe, tmp_path / "out", ranges=dummy_ranges(model))
    verify_checksum(tmp_path / "out")
    assert made.recipe.model == ""
    assert made.fingerprint == model.fingerprint()


def test_calibrated_first_and_quantized_later(tmp_path: Path) -> None:
    model = DummyModel(resized(PRESETS["internlm-7b"], SIZES))
    convert_calibrated(
        model, tmp_path / "calibrated", dummy_ranges(model), CalibratedOptions("float16", SmoothQuant(alpha=0.5))
    )
    quantize_calibrated(tmp_path / "calibrated", Recipe(weights=SmoothQuant()), tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").state == "quantized"
