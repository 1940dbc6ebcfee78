"""One rank's part of a model's weights. Which part is :class:`workbench.parallel.mapping.Mapping`'s to say.

q, k, v, gate and up are split by rows (each rank computes its own heads and channels); o and down by columns (each rank
holds a part of the sum, and the first rank alone adds the bias). Embedding and LM head are held whole by their stages.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, KVScales, LayerWeights, LinearWeight, ModelWeights
from workbench.parallel.mapping import Mapping


def shard(weights: ModelWeights, config: ModelConfig, mapping: Mapping) -> ModelWeights:
    """The weights of ``mapping.rank``.

    Raises:
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    return ModelWeights(
        layers=[_layer(weights.layers[index], config, mapping) for index in mapping.layers(config.num_layers)],
        embedding=weights.embedding if mapping.is_first_stage else None,
        final_norm=weights.final_norm if mapping.is_last_stage else None,
        lm_head=weights.lm_head if mapping.is_last_stage else None,
    )


def _layer(layer: LayerWeights, config: ModelConfig, mapping: Mapping) -> LayerWeights:
    heads = mapping.split(config.num_heads, "query heads")
    kv_heads = mapping.split(config.num_kv_heads, "key/value heads")
    channels = mapping.split(config.intermediate_size, "intermediate channels")
    parts = ((heads, 0), (kv_heads, config.num_heads), (kv_heads, config.num_heads + config.num_kv_heads))
    qkv_rows = torch.cat([_span(part, first, config.head_dim) for part, first in parts])
    gate_up_rows = torch.cat([_span(channels, 0), _span(channels, config.intermediate_size)])
    return replace(
        layer,
        qkv=_rows(layer.qkv, qkv_rows),
        o=_columns(layer.o, _span(heads, 0, config.head_dim), mapping),
        gate_up=_rows(layer.gate_up, gate_up_rows),
        down=_columns(layer.down, _span(channels, 0), mapping),
        kv_scales=None if layer.kv_scales is None else _scales(layer.kv_scales, kv_heads),
    )


def _span(part: range, first: int, width: int = 1) -> Tensor:
    """Row indices of ``part``, counted in units of ``width`` rows after ``first`` units."""
    return torch.arange((first + part.start) * width, (first + part.stop) * width)


def _rows(weight: LinearWeight, rows: Tensor) -> LinearWeight:
    bias = None if weight.bias is None else weight.bias[rows]
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.weight[rows], bias)
    return replace(weight, weight=weight.weight[rows], weight_scale=weight.weight_scale[rows], bias=bias)


def _columns(weight: LinearWeight, columns: Tensor, mapping: Mapping) -> LinearWeight:
    bias = weight.bias if mapping.tp_rank == 0 else None
    return replace(weight, weight=weight.weight[:, columns].contiguous(), bias=bias)


def _scales(scales: KVScales, kv_heads: range) -> KVScales:
    key, value = (
        scale if scale.dim() == 0 else scale[kv_heads.start : kv_heads.stop] for scale in (scales.key, scales.value)
    )
    return KVScales(key, value)
