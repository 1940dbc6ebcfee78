"""One linear layer and how it shall be quantized -> the weight that a checkpoint stores. Knows nothing about files."""

from __future__ import annotations

import torch

from workbench.checkpoint.cast import cast
from workbench.model.numerics import quantize_per_channel
from workbench.model.weights import DenseWeight, Int8Weight, LinearWeight
from workbench.recipe import Int8WeightOnly, WeightQuantization

# Quantizing holds about five float32 copies of the values at hand: 4 Mi values keep that under 100 MB.
CHUNK_VALUES = 1 << 22


def quantize_linear(
    weight: DenseWeight, how: WeightQuantization | None, dtype: torch.dtype, name: str = "the weight"
) -> LinearWeight:
    """Quantize a linear layer; None casts it to ``dtype``.

    Args:
        weight: ``[out, in]`` in any float dtype, with its bias ``[out]`` or None.
        how: the quantization; None for none.
        dtype: of the bias, and of the weight where ``how`` is None.
        name: the layer, for messages.

    Raises:
        CheckpointError: a value is beyond what ``dtype`` can hold.
    """
    bias = None if weight.bias is None else cast(weight.bias, dtype, f"{name}: bias")
    match how:
        case None:
            return DenseWeight(cast(weight.weight, dtype, name), bias)
        case Int8WeightOnly():
            return _int8(weight, bias)


def rows_per_chunk(columns: int) -> int:
    """How many rows of so many columns are worked on at once."""
    return max(1, CHUNK_VALUES // columns)


def _int8(weight: DenseWeight, bias: torch.Tensor | None) -> Int8Weight:
    """Scales belong to rows, so working in chunks of rows gives the same integers in less memory."""
    rows, columns = weight.weight.shape
    integers = torch.empty(rows, columns, dtype=torch.int8, device=weight.weight.device)
    scale = torch.empty(rows, dtype=torch.float32, device=weight.weight.device)
    for start in range(0, rows, step := rows_per_chunk(columns)):
        part = slice(start, start + step)
        integers[part], scale[part] = quantize_per_channel(weight.weight[part])
    return Int8Weight(integers, scale, bias)
