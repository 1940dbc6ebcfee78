"""Quantize and dequantize layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.engine.semantics.operands import Operands, Operation, UnknownSemanticsError, data, operand, torch_dtype

_INTEGER_RANGES = {"INT8": (-128, 127), "INT4": (-8, 7)}
_FP8_LIMIT = 448.0


def broadcast_scale(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale that broadcasts against ``x``: one for all, one per index of ``axis``, or one per block on every axis."""
    scale = scale.float()
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1:
        if not 0 <= axis < x.dim() or scale.shape[0] != x.shape[axis]:
            raise ValueError(f"{scale.shape[0]} scales for axis {axis} of {list(x.shape)}")
        return scale.reshape([-1 if each == axis else 1 for each in range(x.dim())])
    if scale.dim() != x.dim():
        raise ValueError(f"scales {list(scale.shape)} for {list(x.shape)}")
    for each, (have, want) in enumerate(zip(scale.shape, x.shape, strict=True)):
        if want % have:
            raise ValueError(f"scales {list(scale.shape)} do not divide {list(x.shape)} into blocks")
        scale = scale.repeat_interleave(want // have, each) if have != want else scale
    return scale


def quantize(_trt: Any, layer: Any) -> Operation:
    """``round_half_even(x / scale)``, saturated to the whole range of the type; FP8 rounds to its own grid."""
    target, axis = layer.to_type.name, int(layer.axis)
    dtype = torch_dtype(layer.to_type)
    if target != "FP8" and target not in _INTEGER_RANGES:
        raise UnknownSemanticsError(f"quantization to {target} is not interpreted")

    def quantize(operands: Operands) -> Tensor:
        x = data(operands).float()
        real = x / broadcast_scale(operand(operands, 1), x, axis)
        if target == "FP8":
            return real.clamp(-_FP8_LIMIT, _FP8_LIMIT).to(dtype)
        return real.round().clamp(*_INTEGER_RANGES[target]).to(dtype)

    return quantize


def dequantize(_trt: Any, layer: Any) -> Operation:
    """``q * scale``."""
    axis = int(layer.axis)
    return lambda operands: data(operands).float() * broadcast_scale(operand(operands, 1), data(operands), axis)
