"""InternLM, written once over the operations of :mod:`workbench.model.ops`.

Reads no shapes, branches on no data, and never asks which op set it has: what is built is decided by the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from workbench.model.config import ModelConfig
from workbench.model.ops import AttentionSpec, CacheUpdate, LayerCache, Ops, Step, T
from workbench.model.rotary import RotaryTables
from workbench.model.taps import layer_tap
from workbench.model.weights import LayerWeights, ModelWeights
from workbench.parallel.mapping import Mapping


@dataclass(frozen=True)
class Output(Generic[T]):
    """What one forward pass yields: float32 logits ``[batch, seq or 1, vocab]`` (last stage) and cache updates."""

    logits: T | None
    updates: list[CacheUpdate[T]]


class InternLM:
    """One rank's part of a decoder: its layers, and the embedding or the head where this stage holds them."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, rotary: RotaryTables, mapping: Mapping | None = None
    ) -> None:
        self.config = config
        self.weights = weights
        self.rotary = rotary
        self.mapping = mapping or Mapping()
        self.layer_indices = self.mapping.layers(config.num_layers)
        self.num_heads = len(self.mapping.split(config.num_heads, "query heads"))
        self.num_kv_heads = len(self.mapping.split(config.num_kv_heads, "key/value heads"))

    def forward(self, ops: Ops[T], step: Step[T], caches: Sequence[LayerCache[T]]) -> Output[T]:
        """One pass over new tokens; ``caches`` has one entry per layer of this stage."""
        residual: T | None = None
        hidden = self.enter(ops, step)
        updates: list[CacheUpdate[T]] = []
        for index, layer, cache in zip(self.layer_indices, self.weights.layers, caches, strict=True):
            hidden, residual, update = self.layer(ops, step, (index, layer, cache), (hidden, residual))
            updates.append(update)
        return Output(self.leave(ops, step, hidden, residual), updates)

    def enter(self, ops: Ops[T], step: Step[T]) -> T:
        """The residual stream that the first layer of this stage reads."""
        if self.weights.embedding is None:
            return ops.receive(step)
        hidden = ops.embedding(step.ids, self.weights.embedding)
        ops.tap("embedding", hidden)
        return hidden

    def layer(
        self,
        ops: Ops[T],
        step: Step[T],
        layer: tuple[int, LayerWeights, LayerCache[T]],
        stream: tuple[T, T | None],
    ) -> tuple[T, T, CacheUpdate[T]]:
        """One decoder layer. ``stream`` and the result: (what the previous block adds, the residual before that)."""
        index, weights, cache = layer
        name = f"layers.{index}"
        eps = self.config.norm_epsilon

        normed, residual = ops.add_rms_norm(*stream, weights.attention_norm, eps)
        ops.tap(layer_tap(index, "residual_pre"), residual)
        ops.tap(layer_tap(index, "attention_norm"), normed)

        qkv = ops.linear(normed, weights.qkv, f"{name}.attention.qkv")
        ops.tap(layer_tap(index, "attention.qkv"), qkv)
        context, update = ops.attention(qkv, step, cache, self._attention_spec(index, weights))
        ops.tap(layer_tap(index, "attention.context"), context)
        attended = ops.all_reduce(ops.linear(context, weights.o, f"{name}.attention.o"))
        ops.tap(layer_tap(index, "attention.o"), attended)

        normed, residual = ops.add_rms_norm(attended, residual, weights.mlp_norm, eps)
        ops.tap(layer_tap(index, "residual_mid"), residual)
        ops.tap(layer_tap(index, "mlp_norm"), normed)

        gate_up = ops.linear(normed, weights.gate_up, f"{name}.mlp.gate_up")
        ops.tap(layer_tap(index, "mlp.gate_up"), gate_up)
        activated = ops.swiglu(gate_up)
        ops.tap(layer_tap(index, "mlp.act"), activated)
        down = ops.all_reduce(ops.linear(activated, weights.down, f"{name}.mlp.down"))
        ops.tap(layer_tap(index, "mlp.down"), down)
        return down, residual, update

    def leave(self, ops: Ops[T], step: Step[T], hidden: T, residual: T | None) -> T | None:
        """Logits on the last stage; an earlier one hands its residual stream on."""
        final_norm, lm_head = self.weights.final_norm, self.weights.lm_head
        if final_norm is None or lm_head is None:
            ops.send(hidden if residual is None else ops.add(hidden, residual))
            return None
        hidden = ops.gather_last(hidden, step.last_token)
        residual = None if residual is None else ops.gather_last(residual, step.last_token)
        normed, residual = ops.add_rms_norm(hidden, residual, final_norm, self.config.norm_epsilon)
        ops.tap("residual_final", residual)
        ops.tap("final_norm", normed)
        logits = ops.to_float32(ops.linear(normed, lm_head, "lm_head"))
        ops.tap("logits", logits)
        return logits

    def _attention_spec(self, index: int, weights: LayerWeights) -> AttentionSpec:
        return AttentionSpec(
            name=f"layers.{index}.attention",
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.config.head_dim,
            rotary=self.rotary,
            kv_scales=weights.kv_scales,
        )
