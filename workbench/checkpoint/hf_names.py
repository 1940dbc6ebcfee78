"""The one table of InternLM v1's tensor names and shapes in a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from workbench.model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
ATTENTION_NORM = "input_layernorm.weight"
MLP_NORM = "post_attention_layernorm.weight"

# Our linear layer -> the projections whose rows it stacks, in order.
LINEARS: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}


def layer_prefix(layer: int) -> str:
    """What the names of one layer begin with."""
    return f"model.layers.{layer}."


def has_bias(config: ModelConfig, site: str) -> bool:
    """Whether a linear layer (a key of :data:`LINEARS`, or ``lm_head``) carries a bias."""
    return {"attention.qkv": config.qkv_bias, "attention.o": config.output_bias}.get(site, False)


@cache
def tensor_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of the model with its shape, in the order of a forward pass."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    layer = _layer_shapes(config)
    for index in range(config.num_layers):
        shapes.update({layer_prefix(index) + name: shape for name, shape in layer.items()})
    shapes[FINAL_NORM] = (config.hidden_size,)
    shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return MappingProxyType(shapes)


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, middle = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrices = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }
    shapes: dict[str, tuple[int, ...]] = {ATTENTION_NORM: (hidden,), MLP_NORM: (hidden,)}
    for site, projections in LINEARS.items():
        for projection in projections:
            shapes[f"{projection}.weight"] = matrices[projection]
            if has_bias(config, site):
                shapes[f"{projection}.bias"] = matrices[projection][:1]
    return shapes
