"""Smoothing changes nothing but the ranges: exact in float64, and as stated in numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.quantization import seen_ranges
from tests.quantization.seen_ranges import ranges_from, taps_of
from tests.tolerances import relative_l2
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, RecipeError
from workbench.model.weights import Int8Weight, LayerWeights, ModelWeights
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothquant import SMALLEST_SCALE, SmoothedLayer, smooth_layer, smoothing_scale
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant

MODELS = {"v1": {}, "gqa": {"kv_heads": 2, "bias": False}, "gqa_bias": {"kv_heads": 1}}
MODELS["mlp_bias"] = {"kv_heads": 2, "format": "internlm3", "bias": True}
GROUPS = [*((group,) for group in SMOOTHING_GROUPS), tuple(SMOOTHING_GROUPS)]


# Models are shared by the session and never changed.
ranges_of = functools.cache(seen_ranges.ranges_of)


def _smoothed(
    source: HFCheckpoint, ranges: ActivationRanges, how: SmoothQuant, dtype: torch.dtype = torch.float64
) -> tuple[ModelWeights, list[SmoothedLayer]]:
    weights = source.weights(dtype)
    layers = [smooth_layer(layer, i, source.config, ranges, how) for i, layer in enumerate(weights.layers)]
    return replace(weights, layers=[layer.weights for layer in layers]), layers


@pytest.fixture(params=MODELS)
def source(request: pytest.FixtureRequest, random_model_dir: Callable[..., Path]) -> HFCheckpoint:
    return HFCheckpoint.open(random_model_dir(**MODELS[request.param]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("groups", GROUPS, ids="-".join)
def test_folding_changes_no_logits(source: HFCheckpoint, groups: tuple[str, ...], alpha: float) -> None:
    ranges = ranges_of(source.folder)
    weights, layers = _smoothed(source, ranges, SmoothQuant(alpha=alpha, groups=groups))
    expected = taps_of(source.config, source.weights(torch.float64), torch.float64)
    found = taps_of(source.config, weights, torch.float64)
    assert relative_l2(found["logits"], expected["logits"]) < 1e-9
    # It did fold something: the scales are no ones, and the weights are others.
    for layer in layers:
        assert set(layer.scales) == set(groups)
        assert all(bool((scale != 1).any()) for scale in layer.scales.values())


@pytest.mark.parametrize("groups", GROUPS, ids="-".join)
def test_the_ranges_after_smoothing_are_those_of_the_smoothed_model(
    source: HFCheckpoint, groups: tuple[str, ...]
) -> None:
    weights, layers = _smoothed(source, ranges_of(source.folder), SmoothQuant(alpha=0.7, groups=groups))
    seen = ranges_from(source.config, taps_of(source.config, weights, torch.float64))
    for layer in layers:
        for name, maxima in layer.inputs.items():
            torch.testing.assert_close(maxima, seen.inputs[name], rtol=2e-5, atol=1e-7)
        for name, maxima in layer.outputs.items():
            torch.testing.assert_close(maxima, seen.outputs[name], rtol=2e-5, atol=1e-7)


def test_groups_that_are_not_named_stay(source: HFCheckpoint) -> None:
    (before, *_), (after, *_) = (
        source.weights(torch.float32).layers,
        _smoothed(source, ranges_of(source.folder), SmoothQuant(groups=("down",)), torch.float32)[0].layers,
    )
    assert torch.equal(after.attention_norm, before.attention_norm)
    assert torch.equal(after.mlp_norm, before.mlp_norm)
    assert torch.equal(after.qkv.weight, before.qkv.weight)
    assert torch.equal(after.o.weight, before.o.weight)
    half = source.config.intermediate_size
    assert torch.equal(after.gate_up.weight[:half], before.gate_up.weight[:half])  # gate is never divided
    assert not torch.equal(after.gate_up.weight[half:], before.gate_up.weight[half:])


def test_an_exception_for_one_group(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    _, usual = _smoothed(source, ranges, SmoothQuant(alpha=0.5))
    _, other = _smoothed(source, ranges, SmoothQuant(alpha=0.5, alpha_by_group={"layers.1.down": 0.9}))
    assert torch.equal(usual[0].scales["down"], other[0].scales["down"])
    assert not torch.equal(usual[1].scales["down"], other[1].scales["down"])
    assert torch.equal(usual[1].scales["o"], other[1].scales["o"])


def test_the_source_is_not_written_to(source: HFCheckpoint) -> None:
    before = source.weights(torch.float32).layers[0]
    kept = before.qkv.weight.clone(), before.attention_norm.clone()
    _smoothed(source, ranges_of(source.folder), SmoothQuant(), torch.float32)
    after = source.weights(torch.float32).layers[0]
    assert torch.equal(after.qkv.weight, kept[0])
    assert torch.equal(after.attention_norm, kept[1])


def test_half_weights_are_smoothed_in_float32(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    half = source.weights(torch.float16).layers[0]
    smoothed = smooth_layer(half, 0, source.config, ranges, SmoothQuant()).weights
    assert smoothed.qkv.weight.dtype == smoothed.attention_norm.dtype == torch.float32


# ---- the scale itself


def test_the_formula() -> None:
    x, w = torch.tensor([16.0, 16.0, 4.0]), torch.tensor([4.0, 1.0, 9.0])
    assert smoothing_scale(x, w, 0.5).tolist() == [2.0, 4.0, 2 / 3]
    assert smoothing_scale(x, w, 1.0).tolist() == [16.0, 16.0, 4.0]
    assert smoothing_scale(x, w, 0.0).tolist() == [0.25, 1.0, 1 / 9]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_channel_of_zeros_is_left_alone(alpha: float) -> None:
    scale = smoothing_scale(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([2.0, 0.0, 0.0]), alpha)
    assert scale.tolist() == [1.0, 1.0, 1.0]


def test_a_tiny_scale_is_clamped() -> None:
    assert smoothing_scale(torch.tensor([1e-30]), torch.tensor([1.0]), 1.0).tolist() == [SMALLEST_SCALE]


# ---- what is refused


def test_alpha_beyond_one() -> None:
    with pytest.raises(RecipeError, match=r"weights\.alpha is 1\.5; allowed: 0 to 1"):
        SmoothQuant(alpha=1.5)


def test_ranges_of_another_width(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    narrow = replace(ranges, inputs={**ranges.inputs, "layers.1.mlp.down": torch.ones(3)})
    with pytest.raises(
        CheckpointError, match=r"ranges of the inputs of layers\.1\.mlp\.down are \[3\]; allowed: \[160"
    ):
        _smoothed(source, narrow, SmoothQuant())


def test_ranges_without_a_layer(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    fewer = {name: maxima for name, maxima in ranges.outputs.items() if name != "layers.0.attention.o"}
    with pytest.raises(CheckpointError, match=r"hold no linear layer layers\.0\.attention\.o"):
        _smoothed(source, replace(ranges, outputs=fewer), SmoothQuant())


def test_quantized_weights(source: HFCheckpoint) -> None:
    layer: LayerWeights = source.weights(torch.float32).layers[0]
    integers = Int8Weight(torch.zeros(64, 160, dtype=torch.int8), torch.ones(64))
    with pytest.raises(TypeError, match="only dense weights can be smoothed, not Int8Weight"):
        smooth_layer(replace(layer, down=integers), 0, source.config, ranges_of(source.folder), SmoothQuant())
