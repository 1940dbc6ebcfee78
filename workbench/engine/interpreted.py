"""The interpreter in the place of TensorRT's execution context: same calls, same memory addresses, on the CPU.

A session that binds a buffer to the wrong name, forgets a shape, or loses an in-place cache fails here as it would on a
GPU. Used to test sessions, and to run an engine's network where no GPU is.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from workbench.backends.tensorrt_types import torch_dtype
from workbench.engine.interpreter import Interpreter
from workbench.engine.network import DECODE_PROFILE, DecoderNetwork


class InterpretedContext:
    """The calls of ``IExecutionContext`` that a session makes, over one network."""

    def __init__(self, trt: Any, network: DecoderNetwork) -> None:
        self._network = network
        self._interpreter = Interpreter(trt, network.network, network.record.constants)
        self._inputs = {
            tensor.name: tensor for tensor in map(network.network.get_input, range(network.network.num_inputs))
        }
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profile: int | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._inputs:
            return False
        declared = tuple(self._inputs[name].shape)
        fits = len(declared) == len(shape) and all(a in (-1, b) for a, b in zip(declared, shape, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._inputs or name in self._network.output_names

    def execute_async_v3(self, stream: int) -> bool:
        """Read the inputs where they lie, run, write the outputs where they belong. False where one is unbound."""
        unbound = [name for name in (*self._inputs, *self._network.output_names) if not self._addresses.get(name)]
        unshaped = [name for name in self._inputs if name not in self._shapes]
        if unbound or unshaped or self.profile is None or not self._within_profile():
            return False
        feeds = {name: self._read(name) for name in self._inputs}
        for name, value in self._interpreter.run(feeds).items():
            packed = value.contiguous()
            ctypes.memmove(self._addresses[name], packed.data_ptr(), packed.nbytes)
        return True

    def _within_profile(self) -> bool:
        seq = self._shapes["position_ids"][1]
        return seq == 1 if self.profile == DECODE_PROFILE else seq <= self._network.limits.max_input_len

    def _read(self, name: str) -> Tensor:
        shape, dtype = self._shapes[name], torch_dtype(self._inputs[name].dtype)
        count = math.prod(shape)
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(self._addresses[name])
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape).clone()
