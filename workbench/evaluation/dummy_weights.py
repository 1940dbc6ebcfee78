"""Random weights of any size and mode, made on the device layer by layer: for timing, where values do not matter.

Integers and scales are drawn directly, in the ranges that quantizing normal weights would give. Knows no sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.model.weights import (
    DenseWeight,
    Int4GroupWeight,
    Int8Weight,
    KVScales,
    LayerWeights,
    LinearWeight,
    ModelWeights,
    SmoothQuantWeight,
)

GROUP = 128
DEVIATION = 0.02


@dataclass(frozen=True)
class DummyMode:
    """What the linear layers and the cache are made of.

    Attributes:
        linear: "float16", "int8", "int4" (groups of 128) or "w8a8" (per channel and per token); the head is float16.
        int8_cache: one INT8 scale for keys and one for values.
    """

    linear: str
    int8_cache: bool = False


@dataclass(frozen=True)
class DummyLayers(Sequence[LayerWeights]):
    """Layers that are drawn anew whenever they are asked for, so that whoever packs them holds one at a time."""

    config: ModelConfig
    mode: DummyMode
    device: torch.device

    def __len__(self) -> int:
        return self.config.num_layers

    def __iter__(self) -> Iterator[LayerWeights]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> list[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | list[LayerWeights]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._layer()

    def _layer(self) -> LayerWeights:
        config, one = self.config, torch.ones(self.config.hidden_size, dtype=torch.float16, device=self.device)
        hidden, context = config.hidden_size, config.num_heads * config.head_dim
        scale = torch.tensor(0.03, device=self.device)
        return LayerWeights(
            attention_norm=one,
            qkv=self._linear(config.qkv_features, hidden, bias=config.qkv_bias),
            o=self._linear(hidden, context, bias=config.output_bias),
            mlp_norm=one,
            gate_up=self._linear(2 * config.intermediate_size, hidden, bias=config.mlp_bias),
            down=self._linear(hidden, config.intermediate_size, bias=config.mlp_bias),
            kv_scales=KVScales(scale, scale) if self.mode.int8_cache else None,
        )

    def _linear(self, rows: int, columns: int, *, bias: bool = False) -> LinearWeight:
        offset = _normal(self.device, rows) if bias else None
        match self.mode.linear:
            case "float16":
                return DenseWeight(_normal(self.device, rows, columns), offset)
            case "int4":
                packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=self.device)
                scale = self._scale(rows, -(-columns // GROUP), limit=7).half()
                return Int4GroupWeight(packed, scale, GROUP, offset)
        integers = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=self.device)
        kind = Int8Weight if self.mode.linear == "int8" else SmoothQuantWeight
        return kind(integers, self._scale(rows, limit=127), offset)

    def _scale(self, *shape: int, limit: int) -> Tensor:
        return (3 + torch.rand(*shape, device=self.device)) * DEVIATION / limit


def dummy_weights(config: ModelConfig, mode: DummyMode, device: torch.device) -> ModelWeights:
    """A whole model of random weights on ``device``; embedding and head in float16."""
    return ModelWeights(
        layers=DummyLayers(config, mode, device),
        embedding=_normal(device, config.vocab_size, config.hidden_size),
        final_norm=torch.ones(config.hidden_size, dtype=torch.float16, device=device),
        lm_head=DenseWeight(_normal(device, config.vocab_size, config.hidden_size)),
    )


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16, device=device).normal_(0, DEVIATION)
