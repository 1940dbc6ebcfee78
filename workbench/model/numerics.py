"""Integers and scales: the one statement of how a real number becomes an integer.

Order, everywhere: ``scale = absmax / limit`` is computed in float32 and stored in its stored dtype; then
``q = clamp(round_half_even(x / scale), low, high)`` is computed in float32 *with the scale as stored*. INT8 uses
[-127, 127]; an all-zero row gets scale 1. ``weight_scale`` and ``input_scale`` multiply integers back to reals.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_LIMIT = 127


def absmax_scale(absmax: Tensor, limit: int = INT8_LIMIT) -> Tensor:
    """The scale that maps ``absmax`` to ``limit``; float32, same shape. Zero maxima give scale 1.

    A maximum so small that the division underflows to zero is treated as zero: its integers would be infinite.
    """
    scale = absmax.float() / limit
    return torch.where(scale > 0, scale, torch.ones_like(scale))


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
