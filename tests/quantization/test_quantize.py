"""One layer quantized: the integers of numerics.py, whatever the chunks."""

from __future__ import annotations

import pytest
import torch

from workbench.errors import CheckpointError
from workbench.model.numerics import quantize_per_channel
from workbench.model.weights import DenseWeight, Int8Weight
from workbench.quantization import quantize
from workbench.quantization.quantize import quantize_linear
from workbench.recipe import Int8WeightOnly


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
        quantize_linear(weight, None, torch.float16, "layers.3.mlp.down")
    bias = DenseWeight(torch.ones(1, 1), torch.full((1,), 1e6))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.down: bias holds 1e\+06"):
        quantize_linear(bias, Int8WeightOnly(), torch.float16, "layers.3.mlp.down")
