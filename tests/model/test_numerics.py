"""The one statement of how reals become integers: bounds, ties, zeros, extremes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.model.numerics import (
    absmax_scale,
    pack_int4,
    quantize_int4_groups,
    quantize_int8,
    quantize_per_channel,
    quantize_per_tensor,
    quantize_per_token,
    unpack_int4,
)

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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("quantize", [quantize_per_channel, lambda w: quantize_int4_groups(w, 2), quantize_per_token])
def test_what_is_no_number_is_never_a_silent_zero(
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]], value: float
) -> None:
    integers, scale = quantize(torch.tensor([[1.0, value], [0.0, 2.0]]))
    restored = integers.float() * scale.float().reshape(2, 1)
    assert not restored[0].isfinite().any()
    assert restored[1].tolist() == pytest.approx([0, 2], rel=2**-11)


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


# ---- one scale for a matrix


@settings(max_examples=50, deadline=None)
@given(weight=matrices(1000.0))
def test_per_tensor_is_per_channel_of_one_long_row(weight: Tensor) -> None:
    integers, scale = quantize_per_tensor(weight)
    row, row_scale = quantize_per_channel(weight.reshape(1, -1))
    assert scale.shape == ()
    assert torch.equal(integers.flatten(), row[0])
    assert torch.equal(scale, row_scale[0])


# ---- INT4


NIBBLES = arrays.arrays(
    np.int8, st.tuples(st.integers(1, 6), st.integers(1, 8).map(lambda n: 2 * n)), elements=st.integers(-8, 7)
)
GROUPS = st.sampled_from([0, 1, 3, 4, 32, 128])


@settings(max_examples=100, deadline=None)
@given(integers=NIBBLES.map(torch.from_numpy))
def test_packing_is_undone_by_unpacking(integers: Tensor) -> None:
    packed = pack_int4(integers)
    assert packed.dtype == torch.uint8
    assert packed.shape == (integers.shape[0], integers.shape[1] // 2)
    assert torch.equal(unpack_int4(packed), integers)


def test_the_even_channel_is_in_the_low_nibble() -> None:
    assert pack_int4(torch.tensor([[1, -1, -8, 7]], dtype=torch.int8)).tolist() == [[0xF1, 0x78]]


@settings(max_examples=200, deadline=None)
@given(weight=matrices(1e4), group=GROUPS)
def test_an_int4_error_is_at_most_half_a_step(weight: Tensor, group: int) -> None:
    integers, scale = quantize_int4_groups(weight, group)
    width = group or weight.shape[1]
    assert scale.dtype == torch.float16
    assert scale.shape == (weight.shape[0], -(-weight.shape[1] // width))
    assert int(integers.min()) >= -8
    assert int(integers.max()) <= 7
    assert bool((scale > 0).all())
    steps = scale.double().repeat_interleave(width, 1)[:, : weight.shape[1]]
    error = (integers.double() * steps - weight.double()).abs()
    # Rounding the scale to float16 moves 7 steps by 7 * 2**-11, or by 7 halves of its smallest denormal.
    allowed = steps * (0.5 + 7 * 2.0**-11 + 1e-5) + 7 * 2.0**-25
    assert bool((error <= allowed).all())


@settings(max_examples=100, deadline=None)
@given(weight=matrices(1e4), group=GROUPS)
def test_int4_groups_do_not_know_one_another(weight: Tensor, group: int) -> None:
    integers, scale = quantize_int4_groups(weight, group)
    width = group or weight.shape[1]
    for number, start in enumerate(range(0, weight.shape[1], width)):
        alone, own = quantize_int4_groups(weight[:, start : start + width], 0)
        assert torch.equal(integers[:, start : start + width], alone)
        assert torch.equal(scale[:, number], own[:, 0])


@settings(max_examples=100, deadline=None)
@given(integers=NIBBLES.map(torch.from_numpy), exponent=st.integers(-10, 10))
def test_int4_of_integers_times_a_scale_gives_them_back(integers: Tensor, exponent: int) -> None:
    integers = integers.clamp(min=-7)
    integers[:, 0] = 7
    again, scale = quantize_int4_groups(integers.float() * 2.0**exponent, 0)
    assert torch.equal(again, integers)
    assert bool((scale == 2.0**exponent).all())


def test_int4_groups_of_zeros_have_scale_one() -> None:
    integers, scale = quantize_int4_groups(torch.tensor([[0.0, -0.0, 14.0, 0.0]]), 2)
    assert scale.tolist() == [[1.0, 2.0]]
    assert integers.tolist() == [[0, 0, 7, 0]]


def test_int4_of_denormals_has_a_scale_that_float16_can_hold() -> None:
    integers, scale = quantize_int4_groups(torch.tensor([[2.0**-149, 0.0, 2.0**-60, -(2.0**-60)]]), 2)
    # The first underflows in float32 and counts as zero; the second would underflow in float16.
    assert scale.tolist() == [[1.0, torch.finfo(torch.float16).smallest_normal]]
    assert integers.tolist() == [[0, 0, 0, 0]]


def test_int4_beyond_float16_is_clamped() -> None:
    integers, scale = quantize_int4_groups(torch.tensor([[1e7, -1e7, 65504.0, 0.0]]), 0)
    assert scale.tolist() == [[65504.0]]
    assert integers.tolist() == [[7, -8, 1, 0]]


def test_an_outlier_costs_its_int4_group_only() -> None:
    weight = torch.full((1, 8), 0.07)
    weight[0, 0] = 1000.0
    assert quantize_int4_groups(weight, 4)[0].tolist() == [[7, 0, 0, 0, 7, 7, 7, 7]]


class _Divisors(TorchDispatchMode):
    """What everything was divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.div.Tensor:
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantize", [quantize_per_channel, quantize_per_tensor, quantize_per_token])
def test_nothing_is_divided_by_a_number(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    # torch would multiply by its reciprocal on a GPU: for 127, other scales than on a CPU.
    with _Divisors() as divisors:
        quantize(torch.randn(4, 8))
    assert len(divisors.seen) == 2
    assert all(isinstance(divisor, Tensor) for divisor in divisors.seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_scales_of_a_cpu() -> None:
    absmax = torch.arange(1, 1 << 15).to(torch.int16).view(torch.float16).float()
    absmax = absmax[absmax.isfinite()]
    assert torch.equal(absmax_scale(absmax.cuda()).cpu(), absmax_scale(absmax))
