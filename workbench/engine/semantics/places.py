"""Layers that move values and compute shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.engine.semantics.operands import (
    Operands,
    Operation,
    UnknownSemanticsError,
    data,
    has_input,
    operand,
    torch_dtype,
    wide,
)


def shape(_trt: Any, _layer: Any) -> Operation:
    """The shape as int64 ``[rank]``."""
    return lambda operands: torch.tensor(data(operands).shape, dtype=torch.int64)


def shuffle(_trt: Any, layer: Any) -> Operation:
    """Transpose, then reshape (0 copies a size, -1 is inferred), then transpose."""
    rank = len(layer.get_input(0).shape)
    before, after = list(layer.first_transpose)[:rank], list(layer.second_transpose)
    dynamic, copies_zero = has_input(layer, 1), bool(layer.zero_is_placeholder)
    static = None if dynamic or layer.reshape_dims is None else list(layer.reshape_dims)

    def shuffle(operands: Operands) -> Tensor:
        x = data(operands).permute(before)
        sizes = operand(operands, 1).tolist() if dynamic else static
        if sizes is not None:
            if copies_zero:
                sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
            x = x.reshape(sizes)
        return x.permute(after[: x.dim()])

    return shuffle


def slice(trt: Any, layer: Any) -> Operation:
    """``x[start + stride * i]`` for ``i < size`` on every axis; stride 0 repeats; every index must lie inside."""
    if layer.mode != trt.SampleMode.STRICT_BOUNDS or layer.axes is not None:
        raise UnknownSemanticsError("only slices of all axes with STRICT_BOUNDS are interpreted")
    static = [
        None if has_input(layer, slot) else list(getattr(layer, attribute))
        for slot, attribute in ((1, "start"), (2, "shape"), (3, "stride"))
    ]

    def take(operands: Operands) -> Tensor:
        bounds = [operand(operands, slot).tolist() if given is None else given for slot, given in enumerate(static, 1)]
        x = data(operands)
        for axis, (start, size, stride) in enumerate(zip(*bounds, strict=True)):
            x = _slice_axis(x, axis, (start, size, stride))
        return x

    return take


def _slice_axis(x: Tensor, axis: int, bounds: tuple[int, int, int]) -> Tensor:
    start, size, stride = bounds
    last = start + stride * (size - 1)
    if size > 0 and not (0 <= start < x.shape[axis] and 0 <= last < x.shape[axis]):
        raise IndexError(f"slice takes {start}..{last} of axis {axis}, which holds {x.shape[axis]}")
    if stride == 1:
        return x.narrow(axis, start, size)
    return x.index_select(axis, start + stride * torch.arange(size))


def concatenation(_trt: Any, layer: Any) -> Operation:
    """Concatenation along one axis."""
    axis = int(layer.axis)

    def concatenate(operands: Operands) -> Tensor:
        parts = [operand(operands, index) for index in range(len(operands))]
        if parts[0].dtype == torch.float8_e4m3fn:  # torch cannot concatenate this type
            return torch.cat([part.view(torch.uint8) for part in parts], axis).view(torch.float8_e4m3fn)
        return torch.cat(parts, axis)

    return concatenate


def unsqueeze(_trt: Any, _layer: Any) -> Operation:
    """New axes of size 1 at the places that the second input names, counted in the output."""

    def unsqueeze(operands: Operands) -> Tensor:
        x = data(operands)
        for axis in sorted(operand(operands, 1).tolist()):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def squeeze(_trt: Any, _layer: Any) -> Operation:
    """Without the axes that the second input names, each of size 1."""

    def squeeze(operands: Operands) -> Tensor:
        x = data(operands)
        for axis in sorted(operand(operands, 1).tolist(), reverse=True):
            if x.shape[axis] != 1:
                raise ValueError(f"squeezes axis {axis} of size {x.shape[axis]}")
            x = x.squeeze(axis)
        return x

    return squeeze


def gather(_trt: Any, layer: Any) -> Operation:
    """DEFAULT takes slices along an axis, ELEMENT single elements, ND slices by index tuples; none may be outside.

    With ``num_elementwise_dims`` n, DEFAULT pairs the first n axes of data and indices instead of crossing them.
    """
    mode, axis, paired = layer.mode.name, int(layer.axis), int(layer.num_elementwise_dims)
    if paired and mode != "DEFAULT":
        raise UnknownSemanticsError(f"gather {mode} with elementwise dimensions is not interpreted")

    def gather(operands: Operands) -> Tensor:
        x, index = data(operands), operand(operands, 1).long()
        if mode == "ND":
            require_inside(index, torch.tensor(x.shape[: index.shape[-1]]))
            return x[tuple(index.unbind(-1))]
        require_inside(index, torch.tensor(x.shape[axis]))
        return x.gather(axis, index) if mode == "ELEMENT" else _take(x, index, axis, paired)

    return gather


def _take(x: Tensor, index: Tensor, axis: int, paired: int) -> Tensor:
    if paired == 0:
        taken = x.index_select(axis, index.reshape(-1))
        return taken.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])
    return torch.stack([_take(*pair, axis - 1, paired - 1) for pair in zip(x, index, strict=True)])


def require_inside(index: Tensor, size: Tensor) -> None:
    outside = (index < 0) | (index >= size)
    if bool(outside.any()):
        raise IndexError(f"index {int(index[outside][0])} is outside 0..{size.tolist()}, end excluded")


def fill(trt: Any, layer: Any) -> Operation:
    """LINSPACE: ``alpha + beta[axis] * i`` summed over the axes; from attributes, or from inputs 0 to 2."""
    if layer.operation != trt.FillOperation.LINSPACE:
        raise UnknownSemanticsError(f"fill {layer.operation.name} is not interpreted; known: LINSPACE")
    dtype = torch_dtype(layer.get_output(0).dtype)
    compute = torch.float32 if dtype.is_floating_point else dtype
    sizes = None if has_input(layer, 0) else list(layer.shape)
    alpha = None if has_input(layer, 1) else torch.tensor(layer.alpha, dtype=compute)
    beta = None if has_input(layer, 2) else torch.tensor([layer.beta], dtype=compute)

    def fill(operands: Operands) -> Tensor:
        shape = operand(operands, 0).tolist() if sizes is None else sizes
        first = wide(operand(operands, 1)) if alpha is None else alpha
        steps = wide(operand(operands, 2)) if beta is None else beta
        total = first.reshape((1,) * len(shape))
        for axis, size in enumerate(shape):
            place = [size if each == axis else 1 for each in range(len(shape))]
            total = total + (torch.arange(size).to(compute) * steps.reshape(-1)[axis]).reshape(place)
        return total.expand(shape)

    return fill
