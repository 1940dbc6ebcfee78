"""One operation, or a whole model, as a TensorRT network executed by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.backends.tensorrt_ops import TensorRTOps
from workbench.backends.tensorrt_types import trt_dtype

Build = Callable[[TensorRTOps, dict[str, Any]], Mapping[str, Any]]


def run_in_network(dtype: torch.dtype, inputs: Mapping[str, Tensor], build: Build) -> dict[str, Tensor]:
    """Add ``build``'s layers to a new network whose inputs have the shapes of ``inputs``; run it on them."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from workbench.engine.interpreter import Interpreter
    from workbench.engine.kernels import collecting_logger

    builder = trt.Builder(collecting_logger(trt))
    network = builder.create_network(0)
    tensors = {
        name: network.add_input(name, trt_dtype(trt, value.dtype), tuple(value.shape)) for name, value in inputs.items()
    }
    ops = TensorRTOps(trt, network, dtype)
    outputs = build(ops, tensors)
    for name, tensor in outputs.items():
        tensor.name = name
        network.mark_output(tensor)
    return Interpreter(trt, network, ops.record.constants).run(dict(inputs))
