"""Networks of a few layers, made by hand and interpreted: what the tests of the interpreter share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.backends.tensorrt_types import trt_dtype
from workbench.engine.interpreter import Interpreter
from workbench.engine.kernels import collecting_logger

trt = pytest.importorskip("tensorrt_rtx")


class Net:
    """A network under construction, with the tensors behind its constants."""

    def __init__(self) -> None:
        self.builder = trt.Builder(collecting_logger(trt))
        self.net = self.builder.create_network(0)
        self.constants: dict[str, Tensor] = {}
        self.keep: list[Any] = []

    def input(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Any:
        return self.net.add_input(name, trt_dtype(trt, dtype), shape)

    def constant(self, value: Tensor, *, registered: bool = True) -> Any:
        value = value.contiguous()
        self.keep.append(value)
        weights = trt.Weights(trt_dtype(trt, value.dtype), value.data_ptr(), value.numel())
        layer = self.net.add_constant(tuple(value.shape), weights)
        if registered:
            self.constants[layer.name] = value
        return layer.get_output(0)

    def int4(self, value: Tensor) -> Any:
        pairs = value.reshape(-1, 2).to(torch.uint8) & 0xF
        packed = (pairs[:, 0] | pairs[:, 1] << 4).contiguous()
        self.keep.append(packed)
        layer = self.net.add_constant(
            tuple(value.shape), trt.Weights(trt.DataType.INT4, packed.data_ptr(), value.numel())
        )
        self.constants[layer.name] = value
        return layer.get_output(0)

    def done(self, *outputs: Any, **options: Any) -> Interpreter:
        for index, tensor in enumerate(outputs):
            tensor.name = f"y{index}"
            self.net.mark_output(tensor)
        return Interpreter(trt, self.net, self.constants, **options)

    def elementwise(self, x: Any, y: Any, name: str) -> Any:
        return self.net.add_elementwise(x, y, getattr(trt.ElementWiseOperation, name)).get_output(0)

    def dequantize(self, x: Any, scale: Any, axis: int | None = None, to: Any = None) -> Any:
        layer = self.net.add_dequantize(x, scale, to or trt.DataType.FLOAT)
        if axis is not None:
            layer.axis = axis
        return layer.get_output(0)

    def matmul(self, x: Any, y: Any, *, transpose: bool = False) -> Any:
        none = trt.MatrixOperation.NONE
        layer = self.net.add_matrix_multiply(x, none, y, trt.MatrixOperation.TRANSPOSE if transpose else none)
        return layer.get_output(0)


def unary_case(add: Callable[[Net, Any], Any], x: Tensor) -> Tensor:
    """The one output of a network with one input."""
    net = Net()
    output = add(net, net.input("x", x.dtype, tuple(x.shape)))
    return net.done(output).run({"x": x})["y0"]
