"""From a model to a TensorRT network: inputs, the model's own forward pass over the TensorRT op set, outputs, profiles.

Inputs: ``input_ids`` int32 ``[batch, seq]``, ``position_ids`` int64 ``[batch, seq]``, ``start`` int32 ``[batch]``,
``last_token`` int32 ``[batch]``, ``past_key.N`` and ``past_value.N`` ``[batch, kv_heads, max_seq_len, head_dim]``.
Outputs: ``logits`` float32 ``[batch, 1, vocab]`` and per layer either ``present_key.N`` (the whole cache, in place when
bound to the input's buffer) or ``new_key.N`` (only the new rows of an INT8 cache), likewise for values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.backends.tensorrt_ops import NetworkRecord, TensorRTOps
from workbench.backends.tensorrt_types import trt_dtype
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, NewRows, Step
from workbench.recipe import BuildLimits

DECODE_PROFILE, PREFILL_PROFILE = 0, 1


@dataclass(frozen=True)
class DecoderNetwork:
    """A finished network, with what must outlive it.

    Attributes:
        network: the ``INetworkDefinition``.
        record: constants, taps and linear layers.
        limits: lengths and batch that its profiles cover.
        model: the model it was made from.
        dtype: of activations.
    """

    network: Any
    record: NetworkRecord
    limits: BuildLimits
    model: InternLM
    dtype: torch.dtype

    @property
    def input_names(self) -> list[str]:
        return [self.network.get_input(index).name for index in range(self.network.num_inputs)]

    @property
    def output_names(self) -> list[str]:
        return [self.network.get_output(index).name for index in range(self.network.num_outputs)]


def build_network(
    trt: Any,
    builder: Any,
    model: InternLM,
    dtype: torch.dtype,
    limits: BuildLimits,
    *,
    every_position: bool = False,
) -> DecoderNetwork:
    """Write ``model`` into a new network of ``builder``.

    ``every_position`` leaves the choice of the last token out, so that ``logits`` is ``[batch, seq, vocab]``: for
    comparing, never for a plan.
    """
    network = builder.create_network(0)
    inputs = _Inputs(trt, network, model, dtype, limits, every_position)
    ops = TensorRTOps(trt, network, dtype, tp_size=model.mapping.tp_size, hidden_in=inputs.hidden_in())
    output = model.forward(ops, inputs.step(), inputs.caches())
    if output.logits is not None:
        output.logits.name = "logits"
        network.mark_output(output.logits)
        ops.tap("logits", output.logits)
    for index, update in zip(model.layer_indices, output.updates, strict=True):
        form = "new" if isinstance(update, NewRows) else "present"
        for part, tensor in (("key", update.key), ("value", update.value)):
            tensor.name = f"{form}_{part}.{index}"
            network.mark_output(tensor)
    return DecoderNetwork(network, ops.record, limits, model, dtype)


@dataclass(frozen=True)
class _Inputs:
    trt: Any
    network: Any
    model: InternLM
    dtype: torch.dtype
    limits: BuildLimits
    every_position: bool = False

    def step(self) -> Step[Any]:
        kind = self.trt.DataType
        chooses = self.model.mapping.is_last_stage and not self.every_position
        return Step(
            ids=self._add("input_ids", kind.INT32, (-1, -1)) if self.model.mapping.is_first_stage else None,
            positions=self._add("position_ids", kind.INT64, (-1, -1)),
            start=self._add("start", kind.INT32, (-1,)),
            last_token=self._add("last_token", kind.INT32, (-1,)) if chooses else None,
        )

    def hidden_in(self) -> Any | None:
        if self.model.mapping.is_first_stage:
            return None
        return self._add("hidden_in", trt_dtype(self.trt, self.dtype), (-1, -1, self.model.config.hidden_size))

    def caches(self) -> list[LayerCache[Any]]:
        shape = (-1, self.model.num_kv_heads, self.limits.max_seq_len, self.model.config.head_dim)
        caches = []
        for index, layer in zip(self.model.layer_indices, self.model.weights.layers, strict=True):
            kind = trt_dtype(self.trt, torch.int8 if layer.kv_scales is not None else self.dtype)
            key, value = (self._add(f"past_{part}.{index}", kind, shape) for part in ("key", "value"))
            caches.append(LayerCache(key, value))
        return caches

    def _add(self, name: str, kind: Any, shape: tuple[int, ...]) -> Any:
        tensor = self.network.add_input(name, kind, shape)
        for axis, (size, label) in enumerate(zip(shape, ("batch", "seq"), strict=False)):
            if size == -1:
                tensor.set_dimension_name(axis, label)
        return tensor


def add_profiles(builder: Any, config: Any, network: DecoderNetwork) -> None:
    """A decode profile (one token a row, static) and a prefill profile (dynamic length); they share the weights.

    The batch stays dynamic up to at least 2: a fully static profile would store the weights a second time.
    """
    longest = network.limits.max_input_len
    batch = max(2, network.limits.max_batch_size)
    for lengths in ((1, 1, 1), (1, min(512, longest), longest)):
        profile = builder.create_optimization_profile()
        for index in range(network.network.num_inputs):
            tensor = network.network.get_input(index)
            shapes = [
                _filled(tuple(tensor.shape), size, length) for size, length in zip((1, 1, batch), lengths, strict=True)
            ]
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)


def _filled(shape: tuple[int, ...], batch: int, seq: int) -> tuple[int, ...]:
    dynamic = (batch, seq)
    return tuple(dynamic[axis] if size == -1 else size for axis, size in enumerate(shape))
