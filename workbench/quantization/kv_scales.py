"""Ranges -> scales of an INT8 KV cache. Quantizes nothing: keys and values become integers at run time."""

from __future__ import annotations

import torch

from workbench.model.config import ModelConfig
from workbench.model.numerics import absmax_scale
from workbench.model.weights import KVScales
from workbench.quantization.observed import kv_absmax
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int8KVCache


def layer_kv_scales(ranges: ActivationRanges, layer: int, config: ModelConfig, how: Int8KVCache) -> KVScales:
    """One layer's scales: of its keys after RoPE and of its values, apart; queries never enter.

    Args:
        ranges: what calibration saw of the model as its weights are, smoothed or not.
        layer: from 0.
        config: the model's sizes.
        how: one scale per head or for all, and the share of magnitudes to cover.

    Returns:
        float32, ``[kv_heads]`` per head or ``[]`` per tensor, which covers the largest of the heads.

    Raises:
        CheckpointError: ranges that lack the layer, do not fit the model, or have no histogram that a percentile needs.
    """

    def scale(part: str) -> torch.Tensor:
        absmax = kv_absmax(ranges, (layer, part), config.num_kv_heads, how.percentile)
        return absmax_scale(absmax if how.granularity == "per_head" else absmax.max())

    return KVScales(key=scale("key"), value=scale("value"))


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype, how: Int8KVCache | None) -> int:
    """Bytes that one token of one sequence takes in the KV cache of all layers; None stores it in ``dtype``."""
    item_bytes = dtype.itemsize if how is None else torch.int8.itemsize
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes
