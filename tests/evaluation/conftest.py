"""Small random models in memory, for tests that need no folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, LayerWeights, ModelWeights

torch.set_num_threads(2)


@dataclass(frozen=True)
class SmallModel:
    """A model in memory and a batch of token ids ``[2, 9]`` for it."""

    config: ModelConfig
    weights: ModelWeights
    ids: Tensor


def _config(kv_heads: int, qkv_bias: bool, output_bias: bool) -> ModelConfig:
    return ModelConfig(
        architecture="InternLMForCausalLM",
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=8,
        norm_epsilon=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=64,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        bos_token_id=1,
        pad_token_id=None,
        eos_token_ids=(2,),
    )


def _weights(config: ModelConfig, dtype: torch.dtype) -> ModelWeights:
    generator = torch.Generator().manual_seed(1)

    def linear(rows: int, columns: int, *, bias: bool = False) -> DenseWeight:
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        offset = torch.randn(rows, generator=generator) / 4 if bias else None
        return DenseWeight(weight.to(dtype), None if offset is None else offset.to(dtype))

    def norm() -> Tensor:
        return (1 + torch.randn(config.hidden_size, generator=generator) / 8).to(dtype)

    hidden, middle = config.hidden_size, config.intermediate_size
    layers = [
        LayerWeights(
            attention_norm=norm(),
            qkv=linear(config.qkv_features, hidden, bias=config.qkv_bias),
            o=linear(hidden, config.num_heads * config.head_dim, bias=config.output_bias),
            mlp_norm=norm(),
            gate_up=linear(2 * middle, hidden),
            down=linear(hidden, middle),
        )
        for _ in range(config.num_layers)
    ]
    table = torch.randn(config.vocab_size, hidden, generator=generator).to(dtype)
    return ModelWeights(layers, table, norm(), linear(config.vocab_size, hidden))


@pytest.fixture(scope="session")
def small_model() -> Callable[..., SmallModel]:
    """``small_model(kv_heads=4, qkv_bias=True, output_bias=True, dtype=torch.float32)``."""

    def make(
        *, kv_heads: int = 4, qkv_bias: bool = True, output_bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> SmallModel:
        config = _config(kv_heads, qkv_bias, output_bias)
        ids = torch.randint(3, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
        return SmallModel(config, _weights(config, dtype), ids)

    return make
