"""One linear layer and how it shall be quantized -> the weight that a checkpoint stores. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.checkpoint.cast import cast, count_not_finite
from workbench.errors import CheckpointError, RecipeError
from workbench.model.numerics import (
    absmax_scale,
    pack_int4,
    quantize_int4_groups,
    quantize_int8,
    quantize_per_channel,
)
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, SmoothQuant, WeightQuantization

# Quantizing holds about five float32 copies of the values at hand: 4 Mi values keep that under 100 MB.
CHUNK_VALUES = 1 << 22
# INT8 on a CPU takes fewer at once, so that they stay in its caches: measured 1.3 ms instead of 10 for 1.8 Mi values.
CACHED_VALUES = 1 << 18


@dataclass(frozen=True)
class LinearFacts:
    """What a quantizer needs to know of a linear layer beside its weight.

    Attributes:
        name: for messages.
        input_absmax: ``[in]`` float32 from calibration, smoothing included; only static activations need it.
        projections: rows of each projection that is stacked in the weight: q, k, v or gate, up. Empty stands for one.
    """

    name: str = "the weight"
    input_absmax: Tensor | None = None
    projections: Sequence[int] = ()


def quantize_linear(
    weight: DenseWeight, how: WeightQuantization | None, dtype: torch.dtype, facts: LinearFacts | None = None
) -> LinearWeight:
    """Quantize a linear layer; None casts it to ``dtype``. Any smoothing is in the weight already.

    Args:
        weight: ``[out, in]`` in any float dtype, with its bias ``[out]`` or None.
        how: the quantization; None for none.
        dtype: of the bias, and of the weight where ``how`` is None.
        facts: the layer's name, input range and projections.

    Raises:
        CheckpointError: a value is beyond what ``dtype`` can hold, or a weight to quantize is NaN or infinite.
        RecipeError: INT4 for an odd number of input channels, or static activations without a range.
    """
    facts = facts or LinearFacts()
    bias = None if weight.bias is None else cast(weight.bias, dtype, f"{facts.name}: bias")
    if how is not None:
        require_finite(weight.weight, facts.name)
    match how:
        case None:
            return DenseWeight(cast(weight.weight, dtype, facts.name), bias)
        case Int8WeightOnly():
            return Int8Weight(*_int8(weight.weight), bias)
        case Int4WeightOnly():
            return _int4(weight.weight, how.group_size, bias, facts.name)
        case SmoothQuant():
            integers, scale = _smoothquant_int8(weight.weight, how, facts)
            return SmoothQuantWeight(integers, scale, bias, _input_scale(how, facts))


def require_finite(weight: Tensor, name: str) -> None:
    """Refuse a weight that has no scale: one NaN or infinite value would take its whole row, group or matrix with it.

    Raises:
        CheckpointError: it holds NaN or infinite values.
    """
    strange = count_not_finite(weight)
    if strange:
        raise CheckpointError(
            f"{name} holds {strange} values that are NaN or infinite, which cannot be quantized or smoothed",
            allowed="finite values",
            fix="get the weights again, or convert without quantization",
        )


def require_even(columns: int, name: str) -> None:
    """Refuse INT4 for a layer with an odd number of input channels.

    Raises:
        RecipeError: it has one.
    """
    if columns % 2:
        raise RecipeError(
            f"{name} has {columns} input channels, and INT4 packs two into a byte",
            allowed="an even number",
            fix="add the layer to keep, or use kind int8",
        )


def rows_per_chunk(columns: int) -> int:
    """How many rows of so many columns are worked on at once."""
    return max(1, CHUNK_VALUES // columns)


def _chunks(rows: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, rows, step)]


def _int8_chunks(weight: Tensor) -> list[slice]:
    rows, columns = weight.shape
    step = rows_per_chunk(columns)
    if weight.device.type == "cpu":
        step = min(step, max(1, CACHED_VALUES // columns))
    return _chunks(rows, step)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales belong to rows, so working in chunks of rows gives the same integers in less memory."""
    rows, columns = weight.shape
    integers = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, dtype=torch.float32, device=weight.device)
    for part in _int8_chunks(weight):
        integers[part], scale[part] = quantize_per_channel(weight[part])
    return integers, scale


def _int4(weight: Tensor, group_size: int, bias: Tensor | None, name: str) -> Int4GroupWeight:
    rows, columns = weight.shape
    require_even(columns, name)
    group_size = min(group_size or columns, columns)
    integers = torch.empty(rows, columns // 2, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(rows, -(-columns // group_size), dtype=torch.float16, device=weight.device)
    for part in _chunks(rows, rows_per_chunk(columns)):
        values, scale[part] = quantize_int4_groups(weight[part], group_size)
        integers[part] = pack_int4(values)
    return Int4GroupWeight(integers, scale, group_size, bias)


def _smoothquant_int8(weight: Tensor, how: SmoothQuant, facts: LinearFacts) -> tuple[Tensor, Tensor]:
    if how.weight == "per_channel":
        return _int8(weight)
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    start = 0
    for rows in facts.projections or [len(weight)]:
        own = slice(start, start + rows)
        integers[own], scale[own] = _one_scale(weight[own])
        start += rows
    return integers, scale


def _one_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`workbench.model.numerics.quantize_per_tensor`, in chunks of rows; the scale is ``[]``."""
    parts = _int8_chunks(weight)
    scale = absmax_scale(torch.stack([_absmax(weight[part]) for part in parts]).max())
    integers = [quantize_int8(weight[part], scale) for part in parts]
    return integers[0] if len(integers) == 1 else torch.cat(integers), scale


def _absmax(weight: Tensor) -> Tensor:
    low, high = weight.aminmax()
    return torch.maximum(-low, high).float()


def _input_scale(how: SmoothQuant, facts: LinearFacts) -> Tensor | None:
    if how.activation == "per_token":
        return None
    if facts.input_absmax is None:
        raise CheckpointError(
            f"{facts.name} has no calibrated input range", fix="run 'workbench calibrate' and give its ranges"
        )
    return absmax_scale(facts.input_absmax.max())
