"""Sizes of published InternLM models, for benchmarks with random weights. Knows no weights and no files.

Source: the ``config.json`` of internlm-7b, internlm2-7b and internlm2-1_8b.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.model.config import ModelConfig

_7B = ModelConfig(
    architecture="InternLMForCausalLM",
    vocab_size=103168,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    max_position_embeddings=2048,
    qkv_bias=True,
    output_bias=True,
    bos_token_id=1,
    pad_token_id=2,
    eos_token_ids=(2, 103028),
)
_V2_7B = replace(
    _7B,
    architecture="InternLM2ForCausalLM",
    vocab_size=92544,
    intermediate_size=14336,
    num_kv_heads=8,
    norm_epsilon=1e-5,
    rope_theta=1e6,
    max_position_embeddings=32768,
    qkv_bias=False,
    output_bias=False,
    eos_token_ids=(2, 92542),
)
GPU_PRESETS: dict[str, ModelConfig] = {
    "internlm-7b": _7B,
    "internlm2-7b": _V2_7B,
    "internlm2-1.8b": replace(_V2_7B, hidden_size=2048, num_heads=16, intermediate_size=8192, num_layers=24),
}
