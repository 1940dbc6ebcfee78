"""The one statement of how reals become integers: bounds, ties, zeros, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from workbench.model.numerics import absmax_scale, quantize_int8, quantize_per_channel, quantize_per_token

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def matrices(largest: float) -> st.SearchStrategy[Tensor]:
    values = st.floats(-largest, largest, width=32, allow_subnormal=True)
    return arrays.arrays(np.float32, SHAPES, elements=values).map(torch.from_numpy)


@settings(max_examples=200, deadline=None)
@given(weight=matrices(2.0**100))
def test_the_error_is_at_most_half_a_step(weight: Tensor) -> None:
    integers, scale = quantize_per_channel(weight)
    assert integers.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale.shape == weight.shape[:1]
    assert int(integers.int().abs().max()) <= 127
    assert bool((scale > 0).all())
    assert bool(scale.isfinite().all())
    error = (integers.double() * scale.double()[:, None] - weight.double()).abs()
    # A denormal scale is itself rounded coarsely, by up to half of the smallest float32, 127 times over.
    allowed = scale.double()[:, None] * 0.5 * (1 + 1e-5) + 127 * 2.0**-149
    assert bool((error <= allowed).all())


@settings(max_examples=100, deadline=None)
@given(weight=matrices(2.0**100))
def test_the_largest_value_of_a_row_gets_the_largest_integer(weight: Tensor) -> None:
    integers, _ = quantize_per_channel(weight)
    # Rows of denormals have scales too coarse for this.
    rows = weight.abs().amax(1) > 1e-30
    assert bool((integers[rows].int().abs().amax(1) == 127).all())


@settings(max_examples=100, deadline=None)
@given(weight=matrices(1000.0))
def test_quantizing_again_changes_nothing(weight: Tensor) -> None:
    integers, scale = quantize_per_channel(weight)
    again, _ = quantize_per_channel(integers.float())
    kept = weight.abs().amax(1) > 1e-30
    assert torch.equal(again[kept], integers[kept])
    assert torch.equal(quantize_int8(integers.float() * scale[:, None], scale[:, None])[kept], integers[kept])


@settings(max_examples=50, deadline=None)
@given(weight=matrices(1000.0))
def test_a_sign_is_only_a_sign(weight: Tensor) -> None:
    integers, scale = quantize_per_channel(weight)
    negated, same_scale = quantize_per_channel(-weight)
    assert torch.equal(negated, -integers)
    assert torch.equal(scale, same_scale)


def test_per_token_is_per_channel_of_the_last_dimension() -> None:
    x = torch.randn(2, 3, 8)
    integers, scale = quantize_per_token(x)
    rows, row_scale = quantize_per_channel(x.flatten(0, 1))
    assert scale.shape == (2, 3, 1)
    assert torch.equal(integers.flatten(0, 1), rows)
    assert torch.equal(scale.flatten(), row_scale)


def test_ties_go_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize_int8(x, torch.tensor(1.0)).tolist() == [0, 2, 2, 0, -2, -2]


def test_values_beyond_the_scale_are_clamped_alike_on_both_sides() -> None:
    assert quantize_int8(torch.tensor([1e9, -1e9, 127.4]), torch.tensor(1.0)).tolist() == [127, -127, 127]


def test_a_row_of_zeros_has_scale_one() -> None:
    integers, scale = quantize_per_channel(torch.tensor([[0.0, -0.0], [0.0, 254.0]]))
    assert scale.tolist() == [1.0, 2.0]
    assert integers.tolist() == [[0, 0], [0, 127]]


def test_denormals_give_finite_integers() -> None:
    smallest = 2.0**-149  # divided by 127 it is zero in float32
    integers, scale = quantize_per_channel(torch.tensor([[smallest, -smallest], [200 * smallest, 0.0]]))
    assert scale[0] == 1
    assert integers[0].tolist() == [0, 0]
    assert scale[1] == 2 * smallest
    assert integers[1].tolist() == [100, 0]


def test_an_outlier_costs_its_row_only() -> None:
    weight = torch.full((2, 4), 0.01)
    weight[0, 0] = 1000.0
    integers, _ = quantize_per_channel(weight)
    assert integers[0].tolist() == [127, 0, 0, 0]
    assert integers[1].tolist() == [127] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_quantized_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 16).to(dtype)
    for left, right in zip(quantize_per_channel(x), quantize_per_channel(x.float()), strict=True):
        assert torch.equal(left, right)


def test_the_largest_float32_does_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    integers, scale = quantize_per_channel(torch.tensor([[largest, -largest]]))
    assert integers.tolist() == [[127, -127]]
    assert bool(scale.isfinite().all())


def test_other_limits() -> None:
    assert absmax_scale(torch.tensor([14.0, 0.0]), limit=7).tolist() == [2.0, 1.0]
