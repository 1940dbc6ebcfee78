"""Integers and scales: the one statement of how a real number becomes an integer.

Order, everywhere: ``scale = absmax / limit`` is computed in float32 and stored in its stored dtype; then
``q = clamp(round_half_even(x / scale), low, high)`` is computed in float32 *with the scale as stored*. INT8 uses
[-127, 127] with ``absmax / 127`` stored in float32; INT4 uses [-8, 7] with ``absmax / 7`` stored in float16. A row of
zeros gets scale 1. ``weight_scale`` and ``input_scale`` multiply integers back to reals.

No integer stands for NaN or infinity: they go into the scale, so that what is multiplied back is not silently zero.
Weights that hold any are refused before, by :mod:`workbench.quantization.quantize`.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_LIMIT = 127
INT4_LIMIT = 7


def absmax_scale(absmax: Tensor, limit: int = INT8_LIMIT) -> Tensor:
    """The scale that maps ``absmax`` to ``limit``; float32, same shape. Zero maxima give scale 1.

    A maximum so small that the division underflows to zero is treated as zero: its integers would be infinite. NaN and
    infinite maxima give scales that are the same.
    """
    wide = absmax.float()
    # By a tensor: on a GPU, torch multiplies by the reciprocal of a number, which may give another last bit.
    scale = wide / torch.full_like(wide, limit)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantize_int8(x: Tensor, scale: Tensor) -> Tensor:
    """INT8 of ``x``; ``scale`` broadcasts against it. Computed in float32, ties to even, clamped to [-127, 127]."""
    return torch.clamp(torch.round(x.float() / scale.float()), -INT8_LIMIT, INT8_LIMIT).to(torch.int8)


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric INT8 with one scale per output channel.

    Args:
        weight: ``[out, in]``, any float dtype.

    Returns:
        ``[out, in]`` int8 and ``[out]`` float32.
    """
    scale = absmax_scale(weight.float().abs().amax(dim=1))
    return quantize_int8(weight, scale[:, None]), scale


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric INT8 with one scale per token, found at run time.

    Args:
        x: ``[..., in]``, any float dtype.

    Returns:
        ``[..., in]`` int8 and ``[..., 1]`` float32.
    """
    scale = absmax_scale(x.float().abs().amax(dim=-1, keepdim=True))
    return quantize_int8(x, scale), scale


def quantize_per_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric INT8 with one scale for the whole matrix.

    Args:
        weight: ``[out, in]``, any float dtype.

    Returns:
        ``[out, in]`` int8 and ``[]`` float32.
    """
    scale = absmax_scale(weight.float().abs().amax())
    return quantize_int8(weight, scale), scale


def quantize_int4_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Symmetric INT4 with one float16 scale per row and group of input channels; the last group may be shorter.

    Args:
        weight: ``[out, in]``, any float dtype.
        group_size: input channels per scale; 0 for the whole row.

    Returns:
        ``[out, in]`` int8 holding -8 .. 7, and ``[out, groups]`` float16.
    """
    group_size = group_size or weight.shape[1]
    parts = [_int4(part) for part in torch.split(weight.float(), group_size, dim=1)]
    return torch.cat([integers for integers, _ in parts], 1), torch.cat([scale for _, scale in parts], 1)


def _int4(part: Tensor) -> tuple[Tensor, Tensor]:
    scale = absmax_scale(part.abs().amax(1, keepdim=True), INT4_LIMIT)
    half = scale.to(torch.float16)
    # Maxima beyond float16's range in either direction: the nearest scale that can be stored.
    half = torch.where(half == 0, torch.full_like(half, torch.finfo(torch.float16).smallest_normal), half)
    half = torch.where(scale.isfinite(), half.clamp(max=torch.finfo(torch.float16).max), half)
    integers = torch.clamp(torch.round(part / half.float()), -INT4_LIMIT - 1, INT4_LIMIT)
    return integers.to(torch.int8), half


def pack_int4(integers: Tensor) -> Tensor:
    """Two INT4 values per byte: input channel 2i in the low nibble, 2i + 1 in the high one.

    Args:
        integers: ``[out, in]`` int8 holding -8 .. 7; ``in`` is even.

    Returns:
        ``[out, in / 2]`` uint8.
    """
    nibbles = (integers & 0xF).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """What :func:`pack_int4` packed: ``[out, in / 2]`` uint8 -> ``[out, in]`` int8 holding -8 .. 7."""
    low, high = (packed & 0xF).to(torch.int8), (packed >> 4).to(torch.int8)
    nibbles = torch.stack([low, high], -1).flatten(-2)
    return torch.where(nibbles > INT4_LIMIT, nibbles - 16, nibbles)
