"""One decoding step of a whole model in one kernel, for 1 to 8 rows: its arguments, its memory and its launch.

The kernel is ``decode_step.cu``, its sizes are in :mod:`decode_shape`. Weights stay in the layouts of
:mod:`skinny_gemm`; this module knows tensors on one device, no sessions and no model objects.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from workbench.backends.kernels.decode_shape import (
    FEWEST_STAGES,
    StepShape,
    StepTuning,
    dynamic_shared_bytes,
    options,
    splits,
    units_and_stages,
    whole,
)
from workbench.backends.kernels.nvrtc import Kernel, Launch, cached_cubin, code_digest
from workbench.backends.kernels.skinny_gemm import STEP, TILED, Kind, SkinnyLinear, address_of, architecture_of
from workbench.model.ops import LayerCache

SOURCES = (
    "ptx.cuh",
    "fragments.cuh",
    *(f"decode_{part}.cuh" for part in ("layout", "ring", "rows", "product", "attention")),
    "decode_step.cu",
)
ROWS = (1, 2, 4, 8)  # that the kernel is compiled for
# Rows up to which it was faster on an H100 than operation by operation. It runs more of them, which tests show.
MOST_ROWS: dict[Kind, int] = {Kind.FLOAT16: 2, Kind.INT8: 8, Kind.INT4: 8, Kind.W8A8: 2}
CAPABILITY = (9, 0)  # that it was measured on
# :func:`~workbench.backends.kernels.nvrtc.code_digest` of the kernel that was compared with the plain op set on a GPU
# (``kernel_checks`` prints the present one's). Another is used where a session is told to, and only there.
COMPARED_CODE = "d8d8807529058dc9"
SHARED_BYTES = 227 << 10
THREADS = 640
LAUNCH_REGISTERS = 96  # of each of them, which producers and consumers then exchange (``decode_layout.cuh``)
MOST_STAMPS = 64
HEAD_DIMS = (32, 64, 128)


@dataclass(frozen=True)
class StepLayer:
    """One layer's tensors on the device; input scales are those of calibrated W8A8, or None."""

    qkv: SkinnyLinear
    o: SkinnyLinear
    gate_up: SkinnyLinear
    down: SkinnyLinear
    input_scales: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    attention_norm: Tensor
    mlp_norm: Tensor
    cache: LayerCache[Tensor]
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    @property
    def linears(self) -> tuple[SkinnyLinear, SkinnyLinear, SkinnyLinear, SkinnyLinear]:
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True)
class StepModel:
    """All tensors of a model on one device.

    Attributes:
        embedding: float16 ``[vocab, hidden]``.
        final_norm: float16 ``[hidden]``.
        cos, sin: float32 ``[positions, head_dim / 2]``.
    """

    layers: list[StepLayer]
    head: SkinnyLinear
    embedding: Tensor
    final_norm: Tensor
    cos: Tensor
    sin: Tensor
    epsilon: float
    head_input_scale: Tensor | None = None
    heads: int = field(kw_only=True)
    kv_heads: int = field(kw_only=True)
    head_dim: int = field(kw_only=True)


class _Matrix(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("weight", "row_scale", "group_scale", "input_scale", "bias"))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *(
            (name, ctypes.c_void_p)
            for name in ("attention_norm", "mlp_norm", "key", "value", "key_scale", "value_scale")
        ),
    )


_BUFFERS = ("qkv", "context", "residual", "activated", "partial", "arrived", "best", "largest", "counters")


class _Step(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("head", _Matrix),
        *(
            (name, ctypes.c_void_p)
            for name in ("embedding", "final_norm", "cos", "sin", "ids", "start", "logits", *_BUFFERS)
        ),
        ("num_layers", ctypes.c_int),
        ("max_len", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


@functools.cache
def source() -> str:
    """The kernel's CUDA C++, what it shares with others before it."""
    here = resources.files(__package__)
    return "".join(here.joinpath(name).read_text(encoding="utf-8") for name in SOURCES)


@functools.cache
def compared() -> bool:
    """Whether the present kernel is the one that was compared."""
    return code_digest(source()) == COMPARED_CODE


def why_not(model: StepModel, rows: int = 1) -> str | None:
    """Why this kernel cannot, or should not, run so many rows of the model; None where it can."""
    return _why_not_rows(model.layers[0].qkv, rows) or _why_not_weights(model) or _why_not_shared(model, rows)


def _why_not_rows(first: SkinnyLinear, rows: int) -> str | None:
    if rows not in ROWS or rows > MOST_ROWS[first.kind]:
        return f"{rows} rows"
    return None


def _why_not_shared(model: StepModel, rows: int) -> str | None:
    shape, tuning = shape_of(model, rows), StepTuning()
    _, stages = units_and_stages(shape, tuning, dynamic_shared_bytes(shape, tuning, SHARED_BYTES))
    return f"{rows} rows of {shape.hidden} values" if stages < FEWEST_STAGES else None


def _why_not_weights(model: StepModel) -> str | None:
    linears = [linear for layer in model.layers for linear in layer.linears]
    if len({linear.kind for linear in linears}) != 1 or len({linear.groups for linear in linears}) != 1:
        return "layers of several weight types"
    if len({linear.steps_per_group for linear in linears}) != 1:
        return "groups of several sizes"
    head, first = model.head, linears[0]
    alike = (head.kind, head.groups, head.steps_per_group) == (first.kind, first.groups, first.steps_per_group)
    if head.kind is Kind.INT4 and not alike:
        return "an INT4 head over other weights"
    if model.head_dim not in HEAD_DIMS:
        return f"heads of {model.head_dim} values"
    for linear in [*linears, head]:
        if linear.kind not in TILED and linear.k % STEP[linear.kind]:
            return f"{linear.k} inputs"
    if any(linear.rows % 16 for linear in [*linears, head]) or any(layer.gate_up.rows % 32 for layer in model.layers):
        return "rows that do not divide into tiles of 16"
    if model.layers[0].down.k % 16 or model.embedding.dtype != torch.float16:
        return "an odd number of features, or another dtype"
    return None


@dataclass(frozen=True)
class Machine:
    """What runs the kernel.

    Attributes:
        processors: blocks of the grid, all of them there at the same time.
        shared_bytes: shared memory that one block may have.
        kernel: the kernel that macros (``-DNAME=VALUE``) make of the source.
    """

    processors: int
    shared_bytes: int
    kernel: Callable[[tuple[str, ...]], Callable[[Launch, ctypes.Structure], None]]


def can_run_on(device: torch.device) -> bool:
    """Whether a GPU is one that the kernel was measured on; 8 rows need most of its shared memory."""
    return torch.cuda.get_device_capability(device) == CAPABILITY and machine_of(device).shared_bytes >= SHARED_BYTES


def machine_of(device: torch.device) -> Machine:
    """A CUDA device."""
    properties: Any = torch.cuda.get_device_properties(device)
    return Machine(
        int(properties.multi_processor_count),
        int(properties.shared_memory_per_block_optin),
        lambda choices: _kernel(choices, device.index or 0),
    )


class DecodeStep:
    """The kernel for one model, batch and cache, ready to launch; the tensors it was given must stay where they are.

    Attributes:
        ids: int64 ``[rows]``, read and replaced by the most probable next tokens.
        start: int32 ``[rows]``, tokens in the cache; one more after each launch.
        logits: float32 ``[rows, vocab]`` of the last launch.
    """

    def __init__(
        self,
        model: StepModel,
        ids: Tensor,
        start: Tensor,
        tuning: StepTuning | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.device = ids.device
        machine = machine or machine_of(ids.device)
        self.ids, self.start = ids, start
        self.shape = shape_of(model, len(ids))
        self.tuning = tuning or StepTuning()
        self.processors = machine.processors
        self.logits = torch.empty(self.shape.rows, self.shape.vocab, dtype=torch.float32, device=self.device)
        self._model = model
        self._buffers = self._workspace()
        self._layers = _on_device([_layer(layer) for layer in model.layers], self.device)
        self._argument = self._step()
        self.shared_bytes = dynamic_shared_bytes(self.shape, self.tuning, machine.shared_bytes)
        choices = options(self.shape, self.tuning, self.shared_bytes, self.processors)
        self._kernel = machine.kernel(tuple(choices))

    def __call__(self) -> None:
        """Queue one step on torch's current stream."""
        launch = Launch((self.processors, 1), THREADS, self.shared_bytes, cooperative=True)
        self._kernel(launch, self._argument)

    def stamps(self) -> Tensor:
        """Of the last launch with ``tuning.traced_layer``: clock cycles, int64 ``[processors, MOST_STAMPS]``.

        Raises:
            RuntimeError: no layer is traced, or the kernel does not run on a GPU.
        """
        if self.tuning.traced_layer < 0 or not isinstance(self._kernel, Kernel):
            raise RuntimeError("a kernel without timestamps")
        held = bytearray(self._kernel.variable("stamps"))
        return torch.frombuffer(held, dtype=torch.int64).view(self.processors, MOST_STAMPS)

    def _workspace(self) -> dict[str, Tensor]:
        shape, rows = self.shape, self.shape.rows
        pieces = shape.parts * splits(shape, self.tuning, self.processors)

        def empty(*size: int, dtype: torch.dtype = torch.float16) -> Tensor:
            return torch.empty(size, dtype=dtype, device=self.device)

        features = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        return {
            "qkv": empty(rows, features),
            "context": empty(rows, shape.heads * shape.head_dim),
            "residual": empty(rows, shape.hidden),
            "activated": empty(rows, shape.intermediate),
            "partial": empty(pieces, whole(shape.queries * (shape.head_dim + 2), 4), dtype=torch.float32),
            "arrived": torch.zeros(shape.parts, dtype=torch.int32, device=self.device),
            "best": empty(self.processors, rows, dtype=torch.int64),
            "largest": torch.zeros(2 * len(self._model.layers) * rows, dtype=torch.int32, device=self.device),
            "counters": torch.zeros(2, dtype=torch.int32, device=self.device),
        }

    def poison(self) -> None:
        """Fill what a step must write before it reads it with NaN, and with keys that win: for tests."""
        for tensor in (*self._buffers.values(), self.logits):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        self._buffers["best"].fill_(-1)

    def _step(self) -> _Step:
        model, cache = self._model, self._model.layers[0].cache
        return _Step(
            layers=self._layers.data_ptr(),
            head=_matrix(model.head, model.head_input_scale),
            embedding=model.embedding.data_ptr(),
            final_norm=model.final_norm.data_ptr(),
            cos=model.cos.data_ptr(),
            sin=model.sin.data_ptr(),
            ids=self.ids.data_ptr(),
            start=self.start.data_ptr(),
            logits=self.logits.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in self._buffers.items()},
            num_layers=len(model.layers),
            max_len=cache.key.shape[2],
            epsilon=model.epsilon,
        )


def shape_of(model: StepModel, rows: int) -> StepShape:
    """What the kernel must be compiled for."""
    first = model.layers[0]
    key_scale = first.key_scale
    return StepShape(
        rows=rows,
        kind=first.qkv.kind,
        head_kind=model.head.kind,
        groups=first.qkv.groups,
        subs_per_group=first.qkv.steps_per_group,
        hidden=first.qkv.k,
        intermediate=first.down.k,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocab=model.head.rows,
        int8_cache=key_scale is not None,
        scale_per_head=key_scale is not None and key_scale.numel() > 1,
    )


def _matrix(linear: SkinnyLinear, input_scale: Tensor | None) -> _Matrix:
    return _Matrix(
        linear.packed.data_ptr(),
        address_of(linear.row_scale),
        address_of(linear.group_scale),
        address_of(input_scale),
        address_of(linear.bias),
    )


def _layer(layer: StepLayer) -> _Layer:
    matrices = [_matrix(linear, scale) for linear, scale in zip(layer.linears, layer.input_scales, strict=True)]
    return _Layer(
        *matrices,
        attention_norm=layer.attention_norm.data_ptr(),
        mlp_norm=layer.mlp_norm.data_ptr(),
        key=layer.cache.key.data_ptr(),
        value=layer.cache.value.data_ptr(),
        key_scale=address_of(layer.key_scale),
        value_scale=address_of(layer.value_scale),
    )


def _on_device(layers: list[_Layer], device: torch.device) -> Tensor:
    held = b"".join(bytes(layer) for layer in layers)
    return torch.frombuffer(bytearray(held), dtype=torch.uint8).to(device)


@functools.cache
def _kernel(choices: tuple[str, ...], device: int) -> Kernel:
    """Code for this architecture alone (``sm_90a``), whose warps exchange registers.

    They would wait for ever for registers that the launch does not have: where the compiler gives it other than
    :data:`LAUNCH_REGISTERS`, plain ``sm_90`` is compiled, which exchanges none.
    """
    architecture = architecture_of(device)
    kernel = Kernel(cached_cubin(source(), choices, f"{architecture}a"), "decode_step")
    if kernel.registers == LAUNCH_REGISTERS:
        return kernel
    return Kernel(cached_cubin(source(), choices, architecture), "decode_step")
