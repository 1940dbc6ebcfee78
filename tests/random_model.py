"""Small random models, held in memory, of every weight kind."""

from __future__ import annotations

import torch

from workbench.model.config import ModelConfig
from workbench.model.numerics import quantize_per_channel
from workbench.model.weights import (
    DenseWeight,
    Int8Weight,
    KVScales,
    LayerWeights,
    LinearWeight,
    ModelWeights,
    SmoothQuantWeight,
)

SMALL = ModelConfig(
    architecture="InternLMForCausalLM",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    norm_epsilon=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=64,
    qkv_bias=True,
    output_bias=True,
    bos_token_id=1,
    pad_token_id=None,
    eos_token_ids=(2,),
)


def random_linear(out: int, width: int, kind: type, dtype: torch.dtype, bias: bool) -> LinearWeight:
    weight = torch.randn(out, width) / width**0.5
    added = (torch.randn(out) * 0.1).to(dtype) if bias else None
    if kind is DenseWeight:
        return DenseWeight(weight.to(dtype), added)
    integers, scale = quantize_per_channel(weight)
    return Int8Weight(integers, scale, added) if kind is Int8Weight else SmoothQuantWeight(integers, scale, added)


def random_weights(
    config: ModelConfig = SMALL,
    dtype: torch.dtype = torch.float32,
    kind: type = DenseWeight,
    *,
    int8_cache: bool = False,
    seed: int = 0,
) -> ModelWeights:
    """Weights of one kind with a dense head; the same real numbers for every kind and dtype, up to rounding."""
    torch.manual_seed(seed)
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    scales = KVScales(torch.tensor([0.03, 0.05]), torch.tensor([0.02, 0.03])) if int8_cache else None

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(width)).to(dtype)

    layers = [
        LayerWeights(
            attention_norm=norm(),
            qkv=random_linear(config.qkv_features, width, kind, dtype, config.qkv_bias),
            o=random_linear(width, heads, kind, dtype, config.output_bias),
            mlp_norm=norm(),
            gate_up=random_linear(2 * inner, width, kind, dtype, False),
            down=random_linear(width, inner, kind, dtype, False),
            kv_scales=scales,
        )
        for _ in range(config.num_layers)
    ]
    embedding = torch.randn(config.vocab_size, width).to(dtype)
    head = DenseWeight((torch.randn(config.vocab_size, width) / width**0.5).to(dtype))
    return ModelWeights(layers, embedding, norm(), head)
