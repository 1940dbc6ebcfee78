"""Packed weights hold the values that the kernel's lanes expect, for shapes that divide nothing too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench.backends.kernels.packing import (
    ONE_GROUP,
    sub_steps_per_group,
    tile_int4,
    tile_int8,
    tile_scales,
)
from workbench.model.numerics import pack_int4
from workbench.model.weights import Int4GroupWeight


def _random_integers(rows: int, columns: int, limit: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randint(-limit, limit, (rows, columns), generator=generator, dtype=torch.int8)


def _position(row: int, k: int, step_values: int) -> tuple[int, int, int, int, int]:
    """(tile, step, half, lane, value within the lane's 16 bytes), written from the layout's description."""
    within = k % step_values
    sub_step, rest = divmod(within, 32)
    lane = (row % 8) * 4 + rest // 8
    return row // 16, k // step_values, row % 16 // 8, lane, sub_step * 8 + rest % 8


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (40, 80), (48, 192)])
def test_every_int8_value_is_where_its_lane_reads_it(rows: int, columns: int) -> None:
    weight = _random_integers(rows, columns, 127)
    tiled = tile_int8(weight)
    found = torch.tensor([[tiled[_position(r, k, 64)] for k in range(columns)] for r in range(rows)])
    assert torch.equal(found, weight.long())
    assert tiled.long().abs().sum() == weight.long().abs().sum()  # what is padded is zero


@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (40, 160), (24, 272)])
def test_every_int4_value_is_in_the_nibble_that_its_lane_reads(rows: int, columns: int) -> None:
    weight = _random_integers(rows, columns, 8)
    tiled = tile_int4(pack_int4(weight))
    words = tiled.view(torch.int32).long() & 0xFFFFFFFF
    for row in range(rows):
        for k in range(columns):
            *place, value = _position(row, k, 128)
            word, eighth = divmod(value, 8)
            nibble = eighth // 2 + 4 * (eighth % 2)
            assert ((words[tuple(place)][word] >> (4 * nibble)) & 0xF) - 8 == weight[row, k]


def test_scales_lie_in_pairs_of_rows_and_cover_what_is_padded() -> None:
    scale = torch.rand(24, 3, generator=torch.Generator().manual_seed(0)).half()
    weight = Int4GroupWeight(torch.zeros(24, 48, dtype=torch.uint8), scale, 32)
    tiled = tile_scales(weight)
    assert tiled.shape == (4, 2, 8, 2)
    for row in range(24):
        assert torch.equal(tiled[:3, row // 16, row % 8, row % 16 // 8], scale[row])


@pytest.mark.parametrize(
    ("group", "groups", "expected"), [(128, 4, 4), (32, 16, 1), (48, 11, None), (512, 1, ONE_GROUP)]
)
def test_groups_that_begin_inside_a_sub_step_are_not_for_this_kernel(
    group: int, groups: int, expected: int | None
) -> None:
    weight = Int4GroupWeight(torch.zeros(16, 256, dtype=torch.uint8), torch.ones(16, groups).half(), group)
    assert sub_steps_per_group(weight) == expected
