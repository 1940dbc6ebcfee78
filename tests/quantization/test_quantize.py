"""One layer quantized: the integers that the statement in numpy gives, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.quantization import stated_in_numpy as stated
from workbench.backends.torch_ops import dequantize_int4
from workbench.errors import CheckpointError, RecipeError
from workbench.model.numerics import quantize_per_channel
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, SmoothQuantWeight
from workbench.quantization import quantize
from workbench.quantization.quantize import LinearFacts, quantize_linear
from workbench.recipe import (
    INPUT_SCALES,
    WEIGHT_SCALES,
    Int4WeightOnly,
    Int8WeightOnly,
    SmoothQuant,
    WeightQuantization,
)


def test_none_casts() -> None:
    weight = DenseWeight(torch.randn(3, 5), torch.randn(3))
    result = quantize_linear(weight, None, torch.bfloat16)
    assert isinstance(result, DenseWeight)
    assert result.bias is not None
    assert weight.bias is not None
    assert torch.equal(result.weight, weight.weight.bfloat16())
    assert torch.equal(result.bias, weight.bias.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_values", [1, 20, 1 << 22])
def test_chunks_do_not_change_int8(dtype: torch.dtype, chunk_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "CHUNK_VALUES", chunk_values)
    weight = DenseWeight(torch.randn(7, 9).to(dtype), torch.randn(7))
    result = quantize_linear(weight, Int8WeightOnly(), torch.float16)
    integers, scale = quantize_per_channel(weight.weight)
    assert isinstance(result, Int8Weight)
    assert result.bias is not None
    assert torch.equal(result.weight, integers)
    assert torch.equal(result.weight_scale, scale)
    assert result.bias.dtype == torch.float16


def test_without_bias() -> None:
    assert quantize_linear(DenseWeight(torch.randn(2, 2)), Int8WeightOnly(), torch.float16).bias is None


def test_an_overflow_names_the_layer() -> None:
    weight = DenseWeight(torch.full((1, 1), 1e6))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.down holds 1e\+06"):
        quantize_linear(weight, None, torch.float16, LinearFacts("layers.3.mlp.down"))
    bias = DenseWeight(torch.ones(1, 1), torch.full((1,), 1e6))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.down: bias holds 1e\+06"):
        quantize_linear(bias, Int8WeightOnly(), torch.float16, LinearFacts("layers.3.mlp.down"))


@pytest.mark.parametrize("how", [Int8WeightOnly(), Int4WeightOnly(32), SmoothQuant(), SmoothQuant(weight="per_tensor")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_quantized(how: WeightQuantization, value: float) -> None:
    weight = torch.ones(4, 6)
    weight[2, 3] = weight[3, 3] = value
    match = (
        r"layers\.3\.mlp\.down holds 2 values that are NaN or infinite, which cannot be.*; allowed: finite values; get"
    )
    with pytest.raises(CheckpointError, match=match):
        quantize_linear(DenseWeight(weight), how, torch.float16, LinearFacts("layers.3.mlp.down"))


def _weight(rows: int = 24, columns: int = 200) -> torch.Tensor:
    """Rows of very different sizes, one of zeros, and an outlier."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 3, rows)[:, None]
    weight[5] = 0
    weight[7, 11] = 1e4
    return weight


def test_int8_is_as_stated() -> None:
    result = quantize_linear(DenseWeight(_weight()), Int8WeightOnly(), torch.float16)
    integers, scale = stated.int8_rows(_weight().numpy())
    assert isinstance(result, Int8Weight)
    assert np.array_equal(result.weight.numpy(), integers)
    assert np.array_equal(result.weight_scale.numpy(), scale)


@pytest.mark.parametrize("chunk_values", [300, 1 << 22])
@pytest.mark.parametrize("group_size", [128, 64, 32, 0])
@pytest.mark.parametrize("columns", [200, 256, 30])
def test_int4_is_as_stated(group_size: int, columns: int, chunk_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "CHUNK_VALUES", chunk_values)
    weight, bias = _weight(columns=columns), torch.randn(24)
    result = quantize_linear(DenseWeight(weight, bias), Int4WeightOnly(group_size), torch.bfloat16)
    packed, scale = stated.int4_groups(weight.numpy(), group_size)
    assert isinstance(result, Int4GroupWeight)
    assert np.array_equal(result.weight.numpy(), packed)
    assert np.array_equal(result.weight_scale.numpy(), scale)
    assert result.group_size == min(group_size or columns, columns)
    assert result.bias is not None
    assert torch.equal(result.bias, bias.bfloat16())
    # Half a step and what rounding the scale to float16 adds; where that is denormal, it adds more.
    step = result.weight_scale.float().repeat_interleave(result.group_size, 1)[:, :columns]
    error = (dequantize_int4(result, torch.float32) - weight).abs()
    kept = weight.abs().amax(1) > 1e-3
    assert bool((error <= 0.51 * step)[kept].all())


def test_int4_of_an_odd_width() -> None:
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.down has 7 input channels.*; allowed: an even number; add"):
        quantize_linear(
            DenseWeight(torch.ones(2, 7)), Int4WeightOnly(), torch.float16, LinearFacts("layers.0.mlp.down")
        )


@pytest.mark.parametrize("chunk_values", [300, 1 << 22])
@pytest.mark.parametrize("activation", INPUT_SCALES)
@pytest.mark.parametrize("weight_scale", WEIGHT_SCALES)
def test_smoothquant_is_as_stated(
    weight_scale: str, activation: str, chunk_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "CHUNK_VALUES", chunk_values)
    weight, absmax = _weight(), torch.rand(200) * 9
    how = SmoothQuant(weight=weight_scale, activation=activation)
    facts = LinearFacts("qkv", absmax, projections=(12, 4, 8))
    result = quantize_linear(DenseWeight(weight, torch.ones(24)), how, torch.float16, facts)
    per_channel = weight_scale == "per_channel"
    integers, scale = (
        stated.int8_rows(weight.numpy()) if per_channel else stated.int8_projections(weight.numpy(), [12, 4, 8])
    )
    assert isinstance(result, SmoothQuantWeight)
    assert np.array_equal(result.weight.numpy(), integers)
    assert np.array_equal(result.weight_scale.numpy(), scale)
    assert len(set(scale.tolist())) == (24 if per_channel else 3)
    if activation == "per_token":
        assert result.input_scale is None
    else:
        assert result.input_scale is not None
        assert result.input_scale.shape == ()
        assert result.input_scale.numpy() == stated.scale_of(absmax.numpy().max())


def test_one_projection_has_one_scale() -> None:
    result = quantize_linear(DenseWeight(_weight()), SmoothQuant(weight="per_tensor"), torch.float16)
    assert isinstance(result, SmoothQuantWeight)
    assert len(set(result.weight_scale.tolist())) == 1


def test_a_static_scale_without_a_range() -> None:
    with pytest.raises(CheckpointError, match=r"o has no calibrated input range; run 'workbench calibrate'"):
        quantize_linear(
            DenseWeight(torch.ones(2, 2)), SmoothQuant(activation="per_tensor"), torch.float16, LinearFacts("o")
        )
