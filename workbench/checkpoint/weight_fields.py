"""How each weight type is stored: the tensors of one stored linear layer. Knows no names of layers and no files.

Suffixes are TensorRT-LLM's; ``weight_scale`` and ``input_scale`` are ours: from TensorRT-LLM's static scales, which are
quotients of ours, ours could not be had back bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.model.numerics import absmax_scale
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, SmoothQuant, WeightQuantization

INPUT_SCALE = "input_scale"


@dataclass(frozen=True)
class StoredLinear:
    """One stored linear layer.

    Attributes:
        shape: ``(out, in)``.
        dtype: of what is not quantized.
        bias: it has one.
        smoother: TensorRT-LLM expects a ``smoother`` with it when it is SmoothQuant.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    bias: bool
    smoother: bool = False


def is_static(how: WeightQuantization | None) -> bool:
    """Whether activations are quantized by a scale from calibration."""
    return isinstance(how, SmoothQuant) and how.activation == "per_tensor"


def weight_fields(how: WeightQuantization | None, linear: StoredLinear) -> dict[str, TensorSpec]:
    """Suffix -> tensor for one stored linear layer."""
    rows, columns = linear.shape
    row_scale = TensorSpec(torch.float32, (rows,))
    fields: dict[str, TensorSpec]
    match how:
        case None:
            fields = {"weight": TensorSpec(linear.dtype, linear.shape)}
        case Int8WeightOnly():
            fields = {"weight": TensorSpec(torch.int8, linear.shape), "per_channel_scale": row_scale}
        case Int4WeightOnly():
            groups = -(-columns // (how.group_size or columns))
            fields = {
                "weight": TensorSpec(torch.uint8, (rows, columns // 2)),
                "per_channel_scale": TensorSpec(torch.float16, (rows, groups)),
            }
        case SmoothQuant():
            fields = {"weight": TensorSpec(torch.int8, linear.shape), "per_channel_scale": row_scale}
            if is_static(how):
                one = TensorSpec(torch.float32, (1,))
                fields |= {"weight_scale": row_scale, INPUT_SCALE: one, "act_scale": one}
            if linear.smoother:
                fields["smoother"] = TensorSpec(torch.float32, (columns,))
    return fields | ({"bias": TensorSpec(linear.dtype, (rows,))} if linear.bias else {})


def pack(weight: LinearWeight, output_absmax: Tensor | None = None, *, smoother: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight by suffix, as :func:`weight_fields` announces them.

    Args:
        weight: of one stored linear layer.
        output_absmax: ``[out]`` from calibration; SmoothQuant with static activations needs it.
        smoother: whether a ``smoother`` belongs to it. It is all ones: the smoothing is in the weights.
    """
    match weight:
        case DenseWeight():
            fields = {"weight": weight.weight}
        case Int8Weight() | Int4GroupWeight():
            fields = {"weight": weight.weight, "per_channel_scale": weight.weight_scale}
        case SmoothQuantWeight():
            fields = {"weight": weight.weight, **_smoothquant_scales(weight, output_absmax)}
            if smoother:
                fields["smoother"] = torch.ones(weight.weight.shape[1])
    return fields | ({"bias": weight.bias} if weight.bias is not None else {})


def _smoothquant_scales(weight: SmoothQuantWeight, output_absmax: Tensor | None) -> dict[str, Tensor]:
    if weight.input_scale is None:
        return {"per_channel_scale": weight.weight_scale}
    if output_absmax is None:
        raise TypeError("a weight with a static input scale is stored with the range of its output")
    act_scale = absmax_scale(output_absmax.max())
    return {
        "per_channel_scale": weight.input_scale * weight.weight_scale / act_scale,
        "act_scale": act_scale.reshape(1),
        "weight_scale": weight.weight_scale,
        INPUT_SCALE: weight.input_scale.reshape(1),
    }


def row_suffixes(how: WeightQuantization | None) -> tuple[str, ...]:
    """The suffixes that :func:`unpack` reads and whose rows are those of the weight; ``bias`` may be absent."""
    return ("weight", "weight_scale" if is_static(how) else "per_channel_scale", "bias")


def unpack(how: WeightQuantization | None, fields: Mapping[str, Tensor]) -> LinearWeight:
    """The weight that :func:`pack` took apart."""
    weight, bias = fields["weight"], fields.get("bias")
    match how:
        case None:
            return DenseWeight(weight, bias)
        case Int8WeightOnly():
            return Int8Weight(weight, fields["per_channel_scale"], bias)
        case Int4WeightOnly():
            columns = 2 * weight.shape[1]
            group_size = min(how.group_size or columns, columns)
            return Int4GroupWeight(weight, fields["per_channel_scale"], group_size, bias)
        case SmoothQuant():
            scale = fields["weight_scale" if is_static(how) else "per_channel_scale"]
            input_scale = fields[INPUT_SCALE].reshape(()) if is_static(how) else None
            return SmoothQuantWeight(weight, scale, bias, input_scale)


def split_rows(weight: LinearWeight, parts: int) -> list[LinearWeight]:
    """A weight whose rows several stored layers share, taken apart into equal ones; views, not copies."""
    rows = len(weight.weight) // parts
    return [_rows(weight, slice(i * rows, (i + 1) * rows)) for i in range(parts)]


def _rows(weight: LinearWeight, part: slice) -> LinearWeight:
    bias = None if weight.bias is None else weight.bias[part]
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.weight[part], bias)
    return replace(weight, weight=weight.weight[part], weight_scale=weight.weight_scale[part], bias=bias)
