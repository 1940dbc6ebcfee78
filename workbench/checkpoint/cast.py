"""Changing a tensor's float type, without losing values silently. Knows nothing about files."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import CheckpointError


class WeightWarning(UserWarning):
    """Weights that can be used but are suspicious."""


def torch_dtype(name: str) -> torch.dtype:
    """``float16`` -> ``torch.float16``; ``name`` is one of :data:`workbench.recipe.DTYPES`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` in ``dtype``; the tensor itself where it has that type already.

    Raises:
        CheckpointError: finite values of ``name`` become infinite.
    """
    if tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    # Values beyond the narrower range turn infinite; infinities that were there before are the source's own.
    if narrows(tensor.dtype, dtype) and not all_finite(result) and bool((result.isinf() & tensor.isfinite()).any()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise CheckpointError(
            f"{name} holds {largest:.6g}, which {dtype} cannot hold",
            allowed=f"magnitudes up to {torch.finfo(dtype).max:.6g}",
            fix="choose dtype bfloat16 or float32",
        )
    return result


def narrows(source: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` has a smaller range than ``source``."""
    return torch.finfo(dtype).max < torch.finfo(source).max


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes tell, as NaN is carried into them."""
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def count_not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    return 0 if all_finite(tensor) else tensor.numel() - int(tensor.isfinite().sum())
