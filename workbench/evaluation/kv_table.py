"""The KV cache of a calibrated model in numbers: maxima per layer and head, magnitudes, bytes. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoint.cast import torch_dtype
from workbench.evaluation.fact_table import fact_table
from workbench.evaluation.range_table import per_octave
from workbench.model.config import ModelConfig
from workbench.quantization.kv_scales import kv_bytes_per_token
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int8KVCache, Recipe

Values = NDArray[np.float64]
PARTS = ("key", "value")


@dataclass(frozen=True)
class KVMemory:
    """What a KV cache takes.

    Attributes:
        dtype: how keys and values are stored where they are not quantized.
        tokens: in a full cache: sequences of the largest batch, each as long as the recipe's limits allow.
        dense_bytes_per_token: of one sequence, in all layers, in ``dtype``.
        int8_bytes_per_token: the same in INT8.
    """

    dtype: str
    tokens: int
    dense_bytes_per_token: int
    int8_bytes_per_token: int

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        per_token = f"{self.dense_bytes_per_token:,} bytes in {self.dtype}, {self.int8_bytes_per_token:,} in INT8"
        full = f"{self.dense_bytes / 1e6:,.1f} MB in {self.dtype}, {self.int8_bytes / 1e6:,.1f} MB in INT8"
        return fact_table({"one token, all layers": per_token, f"a full cache of {self.tokens:,} tokens": full})

    @property
    def saved_bytes_per_token(self) -> int:
        return self.dense_bytes_per_token - self.int8_bytes_per_token

    @property
    def dense_bytes(self) -> int:
        """Of a full cache."""
        return self.tokens * self.dense_bytes_per_token

    @property
    def int8_bytes(self) -> int:
        """Of a full cache."""
        return self.tokens * self.int8_bytes_per_token


def kv_memory(config: ModelConfig, recipe: Recipe) -> KVMemory:
    """The KV cache of a model in a recipe's dtype, with its limits, and what it would be in INT8."""
    tokens = recipe.build.max_batch_size * recipe.build.max_seq_len
    dense, integers = (kv_bytes_per_token(config, torch_dtype(recipe.dtype), how) for how in (None, Int8KVCache()))
    return KVMemory(recipe.dtype, tokens, dense, integers)


def kv_layers(ranges: ActivationRanges) -> list[int]:
    """The layers whose keys and values were seen, ascending."""
    return sorted(ranges.keys.keys() & ranges.values.keys())


def kv_maxima(ranges: ActivationRanges, part: str) -> Values:
    """``[kv_heads, layers]`` float64: the largest magnitude of each head's keys (after RoPE) or values."""
    maxima = ranges.keys if part == "key" else ranges.values
    return np.stack([maxima[layer].double().cpu().numpy() for layer in kv_layers(ranges)], axis=1)


def hottest_layer(ranges: ActivationRanges) -> int:
    """The layer of the largest key: where one scale for all heads usually costs most."""
    largest = kv_maxima(ranges, "key").max(0)
    return kv_layers(ranges)[int(largest.argmax())]


def has_kv_histograms(ranges: ActivationRanges) -> bool:
    """Whether every layer's magnitudes were counted, so that percentiles are known."""
    return all(f"layers.{layer}.{part}" in ranges.kv_histograms for layer in kv_layers(ranges) for part in PARTS)


def kv_histogram(
    ranges: ActivationRanges, place: tuple[int, str], head: int | None = None
) -> tuple[Values, Values] | None:
    """How many magnitudes of a layer's keys or values lie where.

    Args:
        ranges: what calibration saw.
        place: the layer, and "key" or "value".
        head: one KV head; None for all together.

    Returns:
        Edges and counts as :func:`workbench.evaluation.range_table.shown_histogram`; None where nothing was counted.
    """
    layer, part = place
    counts = ranges.kv_histograms.get(f"layers.{layer}.{part}")
    if counts is None:
        return None
    return per_octave(counts.sum(0) if head is None else counts[head])
