"""Layers that compute element by element, reduce, or multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.semantics.operands import (
    Operands,
    Operation,
    UnknownSemanticsError,
    axes_of,
    choose,
    data,
    operand,
    torch_dtype,
    wide,
)


def cast(_trt: Any, layer: Any) -> Operation:
    """Conversion; float to integer truncates towards zero, as in C."""
    dtype = torch_dtype(layer.to_type)
    return lambda operands: data(operands).to(dtype)


def identity(_trt: Any, _layer: Any) -> Operation:
    """The input itself."""
    return data


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divide,
    "POW": torch.pow,
    "FLOOR_DIV": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


def elementwise(_trt: Any, layer: Any) -> Operation:
    """``op(x, y)`` with size-1 axes broadcast; both operands have one dtype. Integer DIV truncates."""
    compute = choose(_ELEMENTWISE, layer.op.name, "elementwise operation")
    left, right = layer.get_input(0).dtype, layer.get_input(1).dtype
    if left != right:
        raise ValueError(f"operands have dtypes {left.name} and {right.name}")
    return lambda operands: compute(wide(operand(operands, 0)), wide(operand(operands, 1)))


_UNARY: dict[str, Callable[..., Tensor]] = {
    "ABS": torch.abs,
    "CEIL": torch.ceil,
    "COS": torch.cos,
    "ERF": torch.erf,
    "EXP": torch.exp,
    "FLOOR": torch.floor,
    "LOG": torch.log,
    "NEG": torch.neg,
    "NOT": torch.logical_not,
    "RECIP": torch.reciprocal,
    "ROUND": torch.round,
    "SIN": torch.sin,
    "SQRT": torch.sqrt,
}


def unary(_trt: Any, layer: Any) -> Operation:
    """``op(x)``; ROUND takes ties to even."""
    compute = choose(_UNARY, layer.op.name, "unary operation")
    return lambda operands: compute(wide(data(operands)))


_ACTIVATION: dict[str, Callable[..., Tensor]] = {
    "GELU_ERF": functional.gelu,
    "GELU_TANH": lambda x: functional.gelu(x, approximate="tanh"),
    "RELU": torch.relu,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
}


def activation(trt: Any, layer: Any) -> Operation:
    """An activation without parameters."""
    compute = choose(_ACTIVATION, trt.IActivationLayer.type.__get__(layer).name, "activation")
    return lambda operands: compute(wide(data(operands)))


def select(_trt: Any, _layer: Any) -> Operation:
    """``y where condition else z``, broadcasting size-1 axes."""
    return lambda operands: torch.where(operand(operands, 0), operand(operands, 1), operand(operands, 2))


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "AVG": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "SUM": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "MAX": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "MIN": lambda x, axes, keep: x.amin(axes, keepdim=keep),
}


def reduce(_trt: Any, layer: Any) -> Operation:
    """Reduction over the axes of a bit mask."""
    compute, axes, keep = choose(_REDUCE, layer.op.name, "reduction"), axes_of(layer.axes), bool(layer.keep_dims)
    return lambda operands: compute(wide(data(operands)), axes, keep)


def softmax(_trt: Any, layer: Any) -> Operation:
    """Softmax over the one axis of a bit mask."""
    axes = axes_of(layer.axes)
    if len(axes) != 1:
        raise UnknownSemanticsError(f"softmax over axes {axes} is not interpreted; known: one axis")
    return lambda operands: wide(data(operands)).softmax(axes[0])


def transposes(trt: Any, layer: Any) -> tuple[bool, bool]:
    """Whether a MATRIX_MULTIPLY layer transposes the last two axes of each operand."""
    operations = (layer.op0, layer.op1)
    if trt.MatrixOperation.VECTOR in operations:
        raise UnknownSemanticsError("matrix operation VECTOR is not interpreted; known: NONE, TRANSPOSE")
    left, right = (each == trt.MatrixOperation.TRANSPOSE for each in operations)
    return left, right


def matrix_multiply(trt: Any, layer: Any) -> Operation:
    """``op0(x) @ op1(y)``, leading axes broadcast, summed in float32."""
    left, right = transposes(trt, layer)

    def multiply(operands: Operands) -> Tensor:
        x, y = wide(operand(operands, 0)), wide(operand(operands, 1))
        return matmul(x.mT if left else x, y.mT if right else y)

    return multiply


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y``; one GEMM when every leading axis of ``y`` is 1, where torch would repeat it for every batch row."""
    if y.dim() > 2 and x.dim() >= y.dim() and y.numel() == y.shape[-1] * y.shape[-2]:
        y = y.reshape(y.shape[-2:])
    return x @ y


def integer_matmul(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` of int8 in int32, exact: ``[..., m, k] @ [..., k, n] -> [..., m, n]``; leading axes broadcast."""
    if y.dim() > 2 and y.numel() == y.shape[-1] * y.shape[-2]:
        y = y.reshape(y.shape[-2:])
    if y.dim() == 2:
        return torch._int_mm(x.reshape(-1, x.shape[-1]), y).view(*x.shape[:-1], y.shape[-1])
    # Products of int8 summed in float64 stay far below 2^53, so this is exact too.
    return (x.double() @ y.double()).to(torch.int32)
