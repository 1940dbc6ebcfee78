"""Which matrix multiplications of a network an INT8 GEMM computes, and what that GEMM computes, in torch.

Reads layers and their connections; runs nothing. Who runs what is :mod:`workbench.engine.interpreter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.engine.semantics import arithmetic, layer_kind
from workbench.engine.semantics.operands import Operands, Operation, operand


@dataclass(frozen=True)
class IntegerProduct:
    """A matrix multiplication as an INT8 GEMM.

    Attributes:
        inputs: names of both operands' integers and scales: left integers, left scale, right integers, right scale.
        operation: int32 accumulation of these, then both scales in float32.
    """

    inputs: tuple[str, str, str, str]
    operation: Operation


@dataclass(frozen=True)
class _Quantized:
    """A dequantized int8 tensor: the names of its integers and its scale, and the scale's axis counted from the end.

    Axis 0 stands for one scale for all.
    """

    integers: str
    scale: str
    axis: int


def integer_products(trt: Any, layers: Mapping[str, Any]) -> dict[str, IntegerProduct]:
    """The matrix multiplications of ``layers`` (both by output name) that an INT8 GEMM computes."""
    products = {}
    for name, layer in layers.items():
        if layer_kind(trt, layer) == "MATRIX_MULTIPLY":
            left, right = (_quantized(trt, layers, layer.get_input(index).name) for index in range(2))
            product = None if left is None or right is None else _product(trt, layer, left, right)
            if product is not None:
                products[name] = product
    return products


def _quantized(trt: Any, layers: Mapping[str, Any], name: str) -> _Quantized | None:
    """What ``name`` was dequantized from; reshapes that only add leading axes are looked through."""
    layer = layers.get(name)
    kind = "" if layer is None else layer_kind(trt, layer)
    if layer is not None and kind == "SHUFFLE" and _only_adds_leading_axes(layer):
        return _quantized(trt, layers, layer.get_input(0).name)
    if layer is None or kind != "DEQUANTIZE" or layer.get_input(0).dtype != trt.DataType.INT8:
        return None
    integers, scale = layer.get_input(0), layer.get_input(1)
    if len(scale.shape) > 1:
        return None
    per_tensor = tuple(scale.shape) in ((), (1,))
    return _Quantized(integers.name, scale.name, 0 if per_tensor else int(layer.axis) - len(integers.shape))


def _only_adds_leading_axes(layer: Any) -> bool:
    source, target = tuple(layer.get_input(0).shape), tuple(layer.get_output(0).shape)
    permutations = [list(layer.first_transpose), list(layer.second_transpose)]
    in_order = all(each == sorted(each) for each in permutations)
    return in_order and len(source) >= 2 and (1,) * (len(target) - len(source)) + source == target


def _product(trt: Any, layer: Any, x: _Quantized, y: _Quantized) -> IntegerProduct | None:
    """The layer as an INT8 GEMM: int32 accumulation, then both scales in float32. None if it cannot be one.

    A scale is one for all, or one per row of the left operand, or per column of the right: along the summed axis it
    could not leave the sum.
    """
    left, right = arithmetic.transposes(trt, layer)
    if x.axis not in (0, -1 if left else -2) or y.axis not in (0, -2 if right else -1):
        return None

    def multiply(operands: Operands) -> Tensor:
        first, first_scale, second, second_scale = (operand(operands, index) for index in range(4))
        total = arithmetic.integer_matmul(first.mT if left else first, second.mT if right else second)
        return total.float() * (first_scale.float().reshape(-1, 1) * second_scale.float().reshape(1, -1))

    return IntegerProduct((x.integers, x.scale, y.integers, y.scale), multiply)
