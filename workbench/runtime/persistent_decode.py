"""Whether a model can decode in one kernel, and that kernel made ready. Knows op sets' weights, no sessions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.backends.kernels.decode_shape import StepTuning
from workbench.backends.kernels.decode_step import (
    DecodeStep,
    StepLayer,
    StepModel,
    can_run_on,
    why_not,
)
from workbench.backends.triton_ops import TritonOps
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache
from workbench.model.weights import LayerWeights


def step_model(model: InternLM, ops: TritonOps, caches: Sequence[LayerCache[Tensor]]) -> StepModel | None:
    """The model's tensors as the kernel takes them; None where the op set has no packed form of a weight."""
    weights = model.weights
    head = None if weights.lm_head is None else ops.prepared(weights.lm_head)
    if head is None or head.packed is None or weights.embedding is None or weights.final_norm is None:
        return None
    layers = [_layer(ops, layer, cache) for layer, cache in zip(weights.layers, caches, strict=True)]
    if None in layers:
        return None
    return StepModel(
        layers=[layer for layer in layers if layer is not None],
        head=head.packed,
        embedding=weights.embedding,
        final_norm=weights.final_norm,
        cos=model.rotary.cos,
        sin=model.rotary.sin,
        epsilon=model.config.norm_epsilon,
        head_input_scale=head.input_scale,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.config.head_dim,
    )


def _layer(ops: TritonOps, layer: LayerWeights, cache: LayerCache[Tensor]) -> StepLayer | None:
    qkv, o, gate_up, down = (ops.prepared(weight) for weight in (layer.qkv, layer.o, layer.gate_up, layer.down))
    if qkv.packed is None or o.packed is None or gate_up.packed is None or down.packed is None:
        return None
    return StepLayer(
        qkv=qkv.packed,
        o=o.packed,
        gate_up=gate_up.packed,
        down=down.packed,
        input_scales=(qkv.input_scale, o.input_scale, gate_up.input_scale, down.input_scale),
        attention_norm=layer.attention_norm,
        mlp_norm=layer.mlp_norm,
        cache=cache,
        key_scale=None if layer.kv_scales is None else layer.kv_scales.key,
        value_scale=None if layer.kv_scales is None else layer.kv_scales.value,
    )


def prepared_kernel(
    model: InternLM,
    ops: TritonOps,
    caches: Sequence[LayerCache[Tensor]],
    state: tuple[Tensor, Tensor],
    tuning: StepTuning | None = None,
) -> DecodeStep | None:
    """The kernel over these caches, or None where it cannot run this model or batch: :func:`why_it_cannot` says why.

    Args:
        model: with its weights in the hands of ``ops``.
        ops: float16, on a CUDA device.
        caches: one per layer, at addresses that stay.
        state: ids int64 ``[rows]`` and start int32 ``[rows]``, see :class:`DecodeStep`.
        tuning: of the kernel.
    """
    if why_it_cannot(model, ops, caches, len(state[0])) is not None:
        return None
    found = step_model(model, ops, caches)
    assert found is not None
    return DecodeStep(found, *state, tuning)


def why_it_cannot(model: InternLM, ops: TritonOps, caches: Sequence[LayerCache[Tensor]], rows: int) -> str | None:
    """Why a step of so many rows goes operation by operation; None where one kernel does it."""
    if ops.dtype != torch.float16:
        return f"activations in {str(ops.dtype).removeprefix('torch.')}"
    if ops.device.type != "cuda" or not can_run_on(ops.device):
        return "another device than those that the kernel was measured on"
    if not caches:
        return "no layers"
    found = step_model(model, ops, caches)
    return "weights without a packed form" if found is None else why_not(found, rows)
