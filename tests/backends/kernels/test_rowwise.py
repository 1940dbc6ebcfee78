"""Row kernels against the plain torch op set: on a GPU where there is one, in Triton's interpreter otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerances import TOLERANCE, relative_l2

pytest.importorskip("triton", reason="needs triton")

import triton
import triton.language as tl

from workbench.backends.kernels import rowwise
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import quantize_int8, quantize_per_token

pytestmark = [pytest.mark.usefixtures("poisoned")]
SHAPES = [(1, 64), (3, 100), (5, 1025)]


def _random(device: str, *shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "features"), SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_norms(triton_device: str, rows: int, features: int, dtype: torch.dtype, with_residual: bool) -> None:
    x = _random(triton_device, rows, features, dtype=dtype)
    x[0, 0] = 21500.0  # residuals of InternLM-like models reach this: float16 squares would overflow
    residual = _random(triton_device, rows, features, dtype=dtype, seed=1) if with_residual else None
    weight = 1 + 0.1 * _random(triton_device, features, dtype=dtype, seed=2)
    expected = TorchOps(dtype).add_rms_norm(x, residual, weight, 1e-6)
    summed = x if residual is None else torch.empty_like(x)
    normed = rowwise.add_rms_norm((x, residual, summed), weight, 1e-6)
    assert relative_l2(normed, expected[0]) < TOLERANCE[dtype]["op"]
    # The interpreter cuts float32 to bfloat16 where a GPU rounds.
    assert relative_l2(summed, expected[1]) <= (TOLERANCE[dtype]["op"] if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize(("rows", "features"), SHAPES)
@pytest.mark.parametrize("static", [False, True])
def test_a_norm_that_quantizes_gives_the_integers_of_the_norm(
    triton_device: str, rows: int, features: int, static: bool
) -> None:
    x, residual = _random(triton_device, rows, features), _random(triton_device, rows, features, seed=1)
    weight = 1 + 0.1 * _random(triton_device, features, seed=2)
    scale = torch.tensor(0.02, device=triton_device) if static else None
    summed, expected_sum = torch.empty_like(x), x + residual
    normed = rowwise.add_rms_norm((x, residual, expected_sum.clone()), weight, 1e-6)
    found = rowwise.add_rms_norm_quantized((x, residual, summed), weight, 1e-6, scale)
    integers, scales = quantize_per_token(normed) if scale is None else (quantize_int8(normed, scale), scale)
    assert torch.equal(summed, expected_sum)
    assert torch.equal(found.integers, integers)
    assert torch.equal(found.scale, scales)


@pytest.mark.parametrize(("rows", "features"), SHAPES)
def test_integers_are_those_of_the_oracle(triton_device: str, rows: int, features: int) -> None:
    x = _random(triton_device, rows, features)
    x[-1] = 0  # a row of zeros has scale 1
    found = rowwise.quantize_rows(x, None)
    integers, scale = quantize_per_token(x)
    assert torch.equal(found.integers, integers)
    assert torch.equal(found.scale, scale)
    static = torch.tensor(0.01, device=triton_device)  # many values are clipped
    assert torch.equal(rowwise.quantize_rows(x, static).integers, quantize_int8(x, static))


def _every_half(device: str) -> Tensor:
    """All finite float16 values, ``[1, 63488]``."""
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    return values[values.isfinite()][None].to(device)


@triton.jit  # type: ignore[untyped-decorator]
def _divide(x: Any, divisor: Any, y: Any, size: tl.constexpr) -> None:
    columns = tl.arange(0, size)
    tl.store(y + columns, rowwise.divided(tl.load(x + columns), tl.load(divisor)))


def test_float16_values_are_divided_to_the_last_bit(triton_device: str) -> None:
    x = _every_half(triton_device)[0, : 1 << 15]
    for divisor in (3.0, 0.0123456789, 65504.0, 1e-3, 2**0.5, 1.0 - 2**-24, 1.0 + 2**-23):
        held, y = torch.tensor([divisor], device=triton_device), torch.empty_like(x, dtype=torch.float32)
        _divide[(1,)](x, held, y, size=len(x))
        assert torch.equal(y, x.float() / held)


@pytest.mark.parametrize("scale", [2**-24 / 127, 1e-30, 1e-5, 0.0123, 1.0, 515.8, 1e30])
def test_every_float16_value_has_the_oracles_integer(triton_device: str, scale: float) -> None:
    x, held = _every_half(triton_device), torch.tensor(scale, device=triton_device)
    assert torch.equal(rowwise.quantize_rows(x, held).integers, quantize_int8(x, held))


def test_ties_go_to_the_even_integer(triton_device: str) -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -200.0]], device=triton_device).half()
    one = torch.tensor(1.0, device=triton_device)
    assert rowwise.quantize_rows(x, one).integers.tolist() == [[0, 2, 2, 0, -2, 126, -127]]


@pytest.mark.parametrize(("rows", "features"), [(1, 64), (3, 1100)])
def test_swiglu(triton_device: str, rows: int, features: int) -> None:
    gate_up = 4 * _random(triton_device, rows, 2 * features)
    expected = TorchOps(torch.float16).swiglu(gate_up)
    assert relative_l2(rowwise.swiglu(gate_up), expected) < TOLERANCE[torch.float16]["op"]


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_integer_products_are_scaled_in_the_oracles_order(triton_device: str, per_row: bool, with_bias: bool) -> None:
    rows, features = 3, 1100
    sums = torch.randint(-(1 << 20), 1 << 20, (rows, features), generator=torch.Generator().manual_seed(0))
    sums = sums.int().to(triton_device)
    row_scale = 0.01 + _random(triton_device, rows, 1, dtype=torch.float32).abs() * 0.01
    row_scale = row_scale if per_row else row_scale[0, 0]
    column_scale = _random(triton_device, features, dtype=torch.float32).abs() * 0.001
    bias = _random(triton_device, features) if with_bias else None
    expected = (sums.float() * (row_scale * column_scale)).half()
    expected = expected if bias is None else expected + bias
    assert torch.equal(rowwise.rescale(sums, row_scale, column_scale, bias, torch.float16), expected)
