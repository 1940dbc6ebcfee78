"""Small models of every weight type, for sessions that are compared with each other."""

from __future__ import annotations

import torch

from workbench.checkpoint.random_model import RandomModelSpec
from workbench.model.config import ModelConfig
from workbench.model.numerics import pack_int4, quantize_int4_groups, quantize_per_channel
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
from workbench.recipe import BuildLimits

LIMITS = BuildLimits(max_batch_size=64, max_input_len=48, max_output_len=16)


def small_config(
    kv_heads: int, *, hidden: int = 256, heads: int = 8, intermediate: int = 448, vocab: int = 320
) -> ModelConfig:
    """Three layers."""
    return RandomModelSpec(
        layers=3, hidden=hidden, heads=heads, kv_heads=kv_heads, intermediate=intermediate, vocab=vocab
    ).config


def random_linear(kind: str, rows: int, columns: int, seed: int) -> LinearWeight:
    """One weight: "dense", "int8", "int4" (groups of 32; "int4_64", "int4_0" for one a row), "w8a8", "static"."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    bias = torch.randn(rows, generator=generator).half() * 0.1 if seed % 2 else None
    if kind == "dense":
        return DenseWeight(weight.half(), bias)
    if kind.startswith("int4"):
        group = int(kind.partition("_")[2] or 32)
        integers, scale = quantize_int4_groups(weight, group)
        return Int4GroupWeight(pack_int4(integers), scale, group or columns, bias)
    integers, scale = quantize_per_channel(weight)
    if kind == "int8":
        return Int8Weight(integers, scale, bias)
    return SmoothQuantWeight(integers, scale, bias, torch.tensor(0.03) if kind == "static" else None)


def random_weights(config: ModelConfig, kind: str, *, int8_cache: bool) -> ModelWeights:
    """Layers of one kind ("dense", "int8", "int4" in groups of 32, "w8a8"), biases on some, under a dense head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    generator = torch.Generator().manual_seed(0)

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=generator)).half()

    def layer(index: int) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(),
            qkv=random_linear(kind, config.qkv_features, hidden, 10 * index + 1),
            o=random_linear(kind, hidden, config.num_heads * config.head_dim, 10 * index + 3),
            mlp_norm=norm(),
            gate_up=random_linear(kind, 2 * inner, hidden, 10 * index + 4),
            down=random_linear(kind, hidden, inner, 10 * index + 6),
            kv_scales=KVScales(torch.tensor(0.03), torch.tensor(0.03)) if int8_cache else None,
        )

    embedding = torch.randn(config.vocab_size, hidden, generator=generator).half()
    head = DenseWeight((torch.randn(config.vocab_size, hidden, generator=generator) / hidden**0.5).half())
    return ModelWeights([layer(index) for index in range(config.num_layers)], embedding, norm(), head)
