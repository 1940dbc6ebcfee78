"""Executes a TensorRT ``INetworkDefinition`` in torch on the CPU: the very network that the builder compiles.

What a layer computes is read from documentation (:mod:`workbench.engine.semantics`); no compiled kernel runs, so kernel
numerics are not covered. Arithmetic is float32, rounded to each tensor's declared dtype; a dequantized int8 matrix
times another accumulates in int32, as an INT8 GEMM does. Knows nothing about decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.engine.integer_products import integer_products
from workbench.engine.semantics import layer_kind, operation, reveal
from workbench.engine.semantics.operands import Operands, Operation, UnknownSemanticsError, operand, torch_dtype
from workbench.model.numerics import unpack_int4

Collective = Callable[[str, Tensor], Tensor]

# Kinds that only move, compare or convert values: they cannot make a NaN, and they need no float32 copy of a constant.
_MOVING = frozenset(
    {"ATTENTION_OUTPUT", "CAST", "CONCATENATION", "DIST_COLLECTIVE", "FILL", "GATHER", "IDENTITY", "KV_CACHE_UPDATE"}
    | {"SELECT", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE"}
)
_READABLE = frozenset({torch.float32, torch.float16, torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8})


class InterpreterError(RuntimeError):
    """The network cannot be executed as declared; the message names the layer or tensor."""


@dataclass(frozen=True)
class Port:
    """A tensor as the network declares it; -1 in ``shape`` is a size known at run time only."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Node:
    """One layer: its operation, the tensors that it reads (None: not connected), and the one that it makes."""

    name: str
    kind: str
    inputs: tuple[str | None, ...]
    output: Port
    operation: Operation


@dataclass(frozen=True)
class _Step:
    """A node in an execution plan: which operands are constants, and which tensors nobody needs afterwards."""

    node: _Node
    constant: tuple[bool, ...]
    frees: tuple[str, ...]


class Interpreter:
    """One network, compiled once into torch operations; :meth:`run` may be called any number of times.

    Args:
        trt: the TensorRT module that made ``network`` (``tensorrt`` or ``tensorrt_rtx``).
        network: a finished ``INetworkDefinition``; it is not needed any more after this call, but the arrays behind
            its constants must live on.
        constants: ``{layer name: tensor}`` of constants in dtypes that TensorRT does not give back (bfloat16, FP8;
            INT4 as int8 values, or two in a byte of uint8); constants in other dtypes are read from the network itself.
        collective: called with the layer's name and this rank's tensor where ranks exchange data; returns the result.
        cache_bytes: memory for folded constants and float32 copies of half constants, kept between runs.

    Raises:
        InterpreterError: a layer cannot be interpreted, or a constant is missing or is not as declared.
    """

    def __init__(
        self,
        trt: Any,
        network: Any,
        constants: Mapping[str, Tensor] | None = None,
        *,
        collective: Collective | None = None,
        cache_bytes: int = 6 << 30,
    ) -> None:
        self._collective, self._cache_bytes = collective, cache_bytes
        self._cache: dict[tuple[str, bool], Tensor] = {}
        self._plans: dict[tuple[tuple[str, ...], frozenset[str]], list[_Step]] = {}
        self.inputs = _ports(network.get_input(index) for index in range(network.num_inputs))
        self.outputs = _ports(network.get_output(index) for index in range(network.num_outputs))
        self._dimension_names = _dimension_names(network)
        self._leaves: dict[str, Tensor] = {}
        self._packed: set[str] = set()
        self._nodes: dict[str, _Node] = {}
        layers: dict[str, Any] = {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            try:
                self._add(trt, reveal(trt, layer), constants or {})
            except (UnknownSemanticsError, InterpreterError, ValueError) as error:
                raise InterpreterError(f"layer {layer.name!r} ({layer_kind(trt, layer)}): {error}") from error
            layers[layer.get_output(0).name] = layer
        self._integer = {
            name: replace(self._nodes[name], inputs=product.inputs, operation=product.operation)
            for name, product in integer_products(trt, layers).items()
        }
        self._constant_names = self._find_constants()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that can be asked for: the network's inputs, constants and layer outputs."""
        return (*self.inputs, *self._leaves, *self._nodes)

    @property
    def integer_matmuls(self) -> tuple[str, ...]:
        """The matrix multiplications that accumulate in int32: both operands are dequantized int8."""
        return tuple(node.name for node in self._integer.values())

    def run(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors ``outputs``, by name, each in its declared dtype.

        Args:
            feeds: the network's inputs; those that ``outputs`` do not depend on may be absent.
            outputs: names of any tensors; the network's outputs when None.
            given: inner tensors that are known: only the layers between these and ``outputs`` run.

        Raises:
            InterpreterError: a tensor is unknown, missing, or not as declared; a layer reads or writes outside its
                operands, or makes a NaN from operands that hold none.
        """
        wanted = tuple(self.outputs) if outputs is None else tuple(outputs)
        given = given or {}
        env = self._accepted(feeds, given)
        key = (wanted, frozenset(given))
        if key not in self._plans:
            self._plans[key] = self._plan(wanted, frozenset(given))
        with torch.no_grad():
            for step in self._plans[key]:
                operands = self._operands(step, env)
                env[step.node.output.name] = _execute(step.node, operands)
                for name in step.frees:
                    del env[name]
            return {name: self._result(name, env) for name in wanted}

    # ---- compiling the network

    def _add(self, trt: Any, layer: Any, constants: Mapping[str, Tensor]) -> None:
        """Turn one layer into a leaf or a node."""
        kind = layer_kind(trt, layer)
        if layer.num_outputs != 1:
            raise UnknownSemanticsError(f"{layer.num_outputs} outputs; only layers with one are interpreted")
        output = _port(layer.get_output(0))
        if any(output.name in known for known in (self.inputs, self._leaves, self._nodes)):
            raise ValueError(f"another tensor is called {output.name!r} too")
        if kind == "CONSTANT":
            value = self._leaves[output.name] = _constant(layer, output, constants)
            if value.dtype != output.dtype:
                self._packed.add(output.name)
        else:
            execute = self._exchange(layer.name) if kind == "DIST_COLLECTIVE" else operation(trt, layer)
            self._nodes[output.name] = _Node(layer.name, kind, _input_names(layer), output, execute)

    def _exchange(self, name: str) -> Operation:
        def exchange(operands: Operands) -> Tensor:
            if self._collective is None:
                raise ValueError("ranks exchange data here, but no collective was given")
            return self._collective(name, operand(operands, 0))

        return exchange

    def _find_constants(self) -> frozenset[str]:
        """Tensors that depend on no input, so that they are computed once."""
        known = dict.fromkeys(self._leaves, True) | dict.fromkeys(self.inputs, False)
        for name in self._ordered(self._nodes, stop=frozenset(known)):
            node = self._nodes[name]
            known[name] = node.kind != "DIST_COLLECTIVE" and all(
                known[each] for each in node.inputs if each is not None
            )
        return frozenset(name for name, constant in known.items() if constant)

    def _ordered(self, wanted: Iterable[str], stop: frozenset[str]) -> list[str]:
        """The node outputs that ``wanted`` depend on, each after what it reads; nothing behind ``stop`` is entered."""
        order: list[str] = []
        seen = set(stop)
        stack = [(name, False) for name in reversed(list(wanted))]
        while stack:
            name, finished = stack.pop()
            if finished:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                if name not in self._nodes:
                    raise InterpreterError(f"no layer makes the tensor {name!r}")
                stack.append((name, True))
                stack.extend((each, False) for each in reversed(self._nodes[name].inputs) if each is not None)
        return order

    # ---- planning and running

    def _plan(self, wanted: tuple[str, ...], given: frozenset[str]) -> list[_Step]:
        constants = self._constant_names - given
        stop = constants | given | frozenset(self.inputs)
        chosen = {name: self._chosen(name, given) for name in self._ordered(wanted, stop)}
        # Integer GEMMs skip the dequantized operands; those stay in the plan only if somebody else reads them.
        reached = _reached(chosen, wanted)
        order = [name for name in chosen if name in reached]
        last = {each: name for name in order for each in chosen[name].inputs if each is not None}
        steps = []
        for name in order:
            node = chosen[name]
            constant = tuple(each in constants for each in node.inputs)
            ended = {each for each in node.inputs if each is not None and last[each] == name}
            steps.append(_Step(node, constant, tuple(ended - constants - set(wanted))))
        return steps

    def _chosen(self, name: str, given: frozenset[str]) -> _Node:
        """The node that makes ``name``: as an integer GEMM where it is one and no operand of it is given."""
        node = self._nodes[name]
        return node if given.intersection(node.inputs) else self._integer.get(name, node)

    def _operands(self, step: _Step, env: Mapping[str, Tensor]) -> list[Tensor | None]:
        operands: list[Tensor | None] = []
        for name, constant in zip(step.node.inputs, step.constant, strict=True):
            if name is None:
                operands.append(None)
            elif constant:
                operands.append(self._constant(name, widened=step.node.kind not in _MOVING))
            elif name in env:
                operands.append(env[name])
            else:
                raise InterpreterError(f"layer {step.node.name!r} ({step.node.kind}): input {name!r} was not fed")
        return operands

    def _result(self, name: str, env: Mapping[str, Tensor]) -> Tensor:
        if name in self.inputs and name not in env:
            raise InterpreterError(f"input {name!r} was asked for but not fed")
        return env[name] if name in env else self._constant(name, widened=False)

    def _constant(self, name: str, *, widened: bool, keep: bool = True) -> Tensor:
        """A constant in its declared dtype, or in float32 if ``widened``; folded once, kept while memory allows."""
        if (name, widened) in self._cache:
            return self._cache[name, widened]
        if name in self._packed:
            value = unpack_int4(self._leaves[name])
        elif name in self._leaves:
            value = self._leaves[name]
        else:
            node = self._nodes[name]
            operands = [
                None if each is None else self._constant(each, widened=node.kind not in _MOVING, keep=False)
                for each in node.inputs
            ]
            value = _execute(node, operands)
        if widened and value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        elif name in self._leaves:
            return value
        size = value.untyped_storage().nbytes()
        if keep and size <= self._cache_bytes:
            self._cache_bytes -= size
            self._cache[name, widened] = value
        return value

    def _accepted(self, feeds: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Feeds and given tensors, each as declared."""
        for name, value in feeds.items():
            if name not in self.inputs:
                raise InterpreterError(f"the network has no input {name!r}; it has {', '.join(self.inputs)}")
            _require_declared(value, self.inputs[name], f"input {name!r}")
        for name, value in given.items():
            if name not in self._nodes:
                raise InterpreterError(f"no layer makes the given tensor {name!r}")
            _require_declared(value, self._nodes[name].output, f"given tensor {name!r}")
        for dimension, places in self._dimension_names.items():
            sizes = {(name, axis): feeds[name].shape[axis] for name, axis in places if name in feeds}
            if len(set(sizes.values())) > 1:
                raise InterpreterError(f"dimension {dimension!r} has several sizes: {sizes}")
        return {**feeds, **given}


def _port(tensor: Any) -> Port:
    try:
        return Port(tensor.name, torch_dtype(tensor.dtype), tuple(tensor.shape))
    except RuntimeError as error:
        raise InterpreterError(f"TensorRT cannot state tensor {tensor.name!r}: {error}") from error


def _ports(tensors: Iterable[Any]) -> dict[str, Port]:
    return {tensor.name: _port(tensor) for tensor in tensors}


def _dimension_names(network: Any) -> dict[str, list[tuple[str, int]]]:
    """Places (input, axis) that share a dimension's name, and therefore its size."""
    places: dict[str, list[tuple[str, int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        for axis in range(len(tensor.shape)):
            if dimension := tensor.get_dimension_name(axis):
                places.setdefault(dimension, []).append((tensor.name, axis))
    return places


def _constant(layer: Any, output: Port, constants: Mapping[str, Tensor]) -> Tensor:
    """A constant's value: the network's own memory where TensorRT shows it, else the registered tensor."""
    registered = constants.get(layer.name)
    four_bits = layer.get_output(0).dtype.name == "INT4"
    if output.dtype in _READABLE and not four_bits:
        value = torch.from_numpy(layer.weights).reshape(output.shape)
        # Somebody keeps a registered array alive; memory of any other may go with the network.
        return value if registered is not None else value.clone()
    if registered is None:
        raise ValueError(f"a constant of dtype {layer.get_output(0).dtype.name} cannot be read back: register it")
    if four_bits and registered.dtype == torch.uint8:
        # Unpacked when it is read: all layers at once would take twice the memory of their weights.
        packed = Port(output.name, torch.uint8, (*output.shape[:-1], output.shape[-1] // 2))
        _require_declared(registered, packed, "the registered constant")
        return registered
    _require_declared(registered, output, "the registered constant")
    if four_bits and (int(registered.min()) < -8 or int(registered.max()) > 7):
        raise ValueError(f"INT4 values reach {int(registered.min())}..{int(registered.max())}")
    return registered


def _input_names(layer: Any) -> tuple[str | None, ...]:
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    return tuple(None if tensor is None else tensor.name for tensor in tensors)


def _reached(nodes: Mapping[str, _Node], wanted: Iterable[str]) -> set[str]:
    """The keys of ``nodes`` that ``wanted`` depend on."""
    reached: set[str] = set()
    stack = [name for name in wanted if name in nodes]
    while stack:
        name = stack.pop()
        if name not in reached:
            reached.add(name)
            stack.extend(each for each in nodes[name].inputs if each is not None and each in nodes)
    return reached


def _execute(node: _Node, operands: Operands) -> Tensor:
    """The node's output, rounded to its declared dtype, its shape and dtype checked."""
    try:
        value = node.operation(operands)
        if node.output.dtype.is_floating_point and value.is_floating_point():
            value = value.to(node.output.dtype)
        _require_declared(value, node.output, "the result")
    except (IndexError, ValueError, RuntimeError) as error:
        raise InterpreterError(f"layer {node.name!r} ({node.kind}): {error}") from error
    if node.kind not in _MOVING and _has_nan(value) and not any(map(_has_nan, operands)):
        raise InterpreterError(f"layer {node.name!r} ({node.kind}): the result holds NaN, the operands hold none")
    return value


def _has_nan(value: Tensor | None) -> bool:
    if value is None or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return bool(value.isnan().any())


def _require_declared(value: Tensor, port: Port, what: str) -> None:
    if value.dtype != port.dtype:
        raise InterpreterError(f"{what} is {value.dtype}, declared {port.dtype}")
    declared = len(port.shape) == value.dim() and all(
        want in (-1, have) for want, have in zip(port.shape, value.shape, strict=True)
    )
    if not declared:
        raise InterpreterError(f"{what} has shape {list(value.shape)}, declared {list(port.shape)}")
