"""Floating-point operations of a decoding step and of a prefill, from a model's sizes. Knows nothing about time."""

from __future__ import annotations

from workbench.model.config import ModelConfig


def step_flops(config: ModelConfig, batch: int, context: float) -> float:
    """Floating-point operations of one step: two for each weight and row, four for each query head's key element."""
    weights = _layer_weights(config) + config.vocab_size * config.hidden_size
    return batch * (2 * weights + _attention_flops(config, context))


def prefill_flops(config: ModelConfig, batch: int, length: float) -> float:
    """Floating-point operations of reading prompts: a token sees those before it; the last goes on to the head."""
    per_token = 2 * _layer_weights(config) + _attention_flops(config, (length + 1) / 2)
    return batch * (length * per_token + 2 * config.vocab_size * config.hidden_size)


def _layer_weights(config: ModelConfig) -> int:
    per_layer = config.hidden_size * (config.qkv_features + config.num_heads * config.head_dim)
    return config.num_layers * (per_layer + 3 * config.hidden_size * config.intermediate_size)


def _attention_flops(config: ModelConfig, context: float) -> float:
    return 4 * config.num_layers * config.num_heads * config.head_dim * context
