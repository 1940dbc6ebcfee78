"""Weights in the order in which the lanes of :mod:`skinny_gemm` read them. Knows layouts, runs nothing.

A tile is 16 rows, a step 64 bytes of each of them. Lane ``4 g + t`` of a warp reads 16 bytes of row ``g`` and 16 of row
``g + 8``; they hold the values ``32 s + 8 t .. 32 s + 8 t + 7`` of every sub-step ``s`` of 32 values, since 8 values of
float16 activations are what the lane loads beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workbench.model.weights import Int4GroupWeight

TILE_ROWS = 16
SUB_STEP = 32
INT8_STEP = 64
INT4_STEP = 128
ONE_GROUP = 1 << 30


def tile_int8(weight: Tensor) -> Tensor:
    """``[out, in]`` int8 -> ``[tiles, steps, 2, 32, 16]`` int8, padded with zeros to whole tiles and steps."""
    padded = _padded(weight, TILE_ROWS, INT8_STEP)
    steps = padded.shape[1] // INT8_STEP
    parts = padded.view(-1, 2, 8, steps, 2, 4, 8)
    return parts.permute(0, 3, 1, 2, 5, 4, 6).reshape(-1, steps, 2, 32, 16).contiguous()


def tile_int4(packed: Tensor) -> Tensor:
    """``[out, in / 2]`` uint8 as :func:`~workbench.model.numerics.pack_int4` -> ``[tiles, steps, 2, 32, 16]`` uint8.

    Nibbles become ``q + 8``. Within a word of 8 values the even ones lie in the low half: neighbours are 16 bits apart,
    where one instruction turns both into float16.
    """
    padded = _padded(packed, TILE_ROWS, INT4_STEP // 2)
    steps = padded.shape[1] // (INT4_STEP // 2)
    quads = padded.view(padded.shape[0], -1, 4)
    low, high = quads & 0xF, quads >> 4
    nibbles = torch.cat([low, high], -1)
    words = (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)) ^ 0x88
    parts = words.view(-1, 2, 8, steps, 4, 4, 4)
    return parts.permute(0, 3, 1, 2, 5, 4, 6).reshape(-1, steps, 2, 32, 16).contiguous()


def tile_scales(weight: Int4GroupWeight) -> Tensor:
    """``[groups, tiles, 8, 2]`` float16: the scales of rows ``g`` and ``g + 8`` of a tile beside each other."""
    scale = _padded(weight.weight_scale, TILE_ROWS, 1)
    inputs = 2 * weight.weight.shape[1]
    whole = -(-inputs // INT4_STEP) * INT4_STEP
    missing = max(0, -(-whole // weight.group_size) - scale.shape[1])
    scale = functional.pad(scale, (0, missing))
    return scale.view(-1, 2, 8, scale.shape[1]).permute(3, 0, 2, 1).contiguous()


def sub_steps_per_group(weight: Int4GroupWeight) -> int | None:
    """Sub-steps of 32 values that share a scale; None where groups begin inside one."""
    if weight.weight_scale.shape[1] == 1:
        return ONE_GROUP
    return weight.group_size // SUB_STEP if weight.group_size % SUB_STEP == 0 else None


def scales_per_step(weight: Int4GroupWeight) -> int:
    """Scales that 128 values of a row need, a power of two: 1, 2 or 4."""
    shared = sub_steps_per_group(weight) or 1
    return 1 if shared % 4 == 0 else 2 if shared == 2 else 4


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    return functional.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))
