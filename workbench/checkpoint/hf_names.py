"""Tensor names and shapes of a Hugging Face checkpoint: one table for each InternLM version, and one for plain Llama.

Everywhere else a tensor goes by Llama's name, which InternLM v1 and InternLM3 share. A table says under which name, and
for InternLM2 as which rows of a fused tensor, a folder stores it. Opens no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from workbench.model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
ATTENTION_NORM = "input_layernorm.weight"
MLP_NORM = "post_attention_layernorm.weight"
Q, K, V = QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# Our linear layer -> the projections whose rows it stacks, in order.
LINEARS: dict[str, tuple[str, ...]] = {
    "attention.qkv": QKV,
    "attention.o": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}

_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)\.(weight|bias)")
# What RoPE computes from its base; old checkpoints store it all the same.
_ROTARY_BUFFER = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


@dataclass(frozen=True)
class NameTable:
    """How one version names its tensors.

    Attributes:
        architecture: ``architectures[0]`` of its ``config.json``.
        model_type: the version's short name, and that field of its ``config.json``.
        outer: name outside the layers -> stored name, where it is another.
        inner: name within a layer, without ``.weight`` -> stored name, where it is another.
        wqkv: the layer that holds q, k and v fused (:mod:`workbench.checkpoint.wqkv`); None where they are apart.
    """

    architecture: str
    model_type: str
    outer: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    wqkv: str | None = None


@dataclass(frozen=True)
class StoredPlace:
    """Where a folder keeps a tensor.

    Attributes:
        name: of the stored tensor.
        part: which of q, k, v it is, a member of :data:`QKV`, where that tensor holds all three; else None.
    """

    name: str
    part: str | None = None


INTERNLM = NameTable("InternLMForCausalLM", "internlm")
INTERNLM2 = NameTable(
    "InternLM2ForCausalLM",
    "internlm2",
    outer={EMBEDDING: "model.tok_embeddings.weight", LM_HEAD: "output.weight"},
    inner={
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.wo",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    },
    wqkv="attention.wqkv",
)
INTERNLM3 = NameTable("InternLM3ForCausalLM", "internlm3")
LLAMA = NameTable("LlamaForCausalLM", "llama")

# Architecture -> its table.
TABLES: dict[str, NameTable] = {table.architecture: table for table in (INTERNLM, INTERNLM2, INTERNLM3, LLAMA)}
# Short name of a version -> its table.
FORMATS: dict[str, NameTable] = {table.model_type: table for table in TABLES.values()}


def name_table(config: ModelConfig) -> NameTable:
    """The table of a model's version."""
    return TABLES[config.architecture]


def layer_prefix(layer: int) -> str:
    """What the names of one layer begin with."""
    return f"model.layers.{layer}."


def has_bias(config: ModelConfig, site: str) -> bool:
    """Whether a linear layer (a key of :data:`LINEARS`, or ``lm_head``) carries a bias."""
    biases = {"attention.qkv": config.qkv_bias, "attention.o": config.output_bias}
    return biases.get(site, config.mlp_bias and site.startswith("mlp."))


def is_rotary_buffer(name: str) -> bool:
    """Whether a stored tensor is a table of RoPE, which follows from the config and is never read."""
    return _ROTARY_BUFFER.search(name) is not None


@cache
def tensor_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of the model with its shape, by Llama's names, in the order of a forward pass."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    layer = _layer_shapes(config)
    for index in range(config.num_layers):
        shapes.update({layer_prefix(index) + name: shape for name, shape in layer.items()})
    shapes[FINAL_NORM] = (config.hidden_size,)
    shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return MappingProxyType(shapes)


@cache
def stored_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor as the model's version stores it, in the order of a forward pass."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes(config).items():
        place = stored_place(config, name)
        fused = place.part is not None
        shapes.setdefault(place.name, (config.qkv_features, *shape[1:]) if fused else shape)
    return MappingProxyType(shapes)


@cache
def stored_parts(config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
    """Stored tensor -> the tensors, by Llama's names, that it holds: one, or q, k and v."""
    parts: dict[str, tuple[str, ...]] = {}
    for name in tensor_shapes(config):
        stored = stored_place(config, name).name
        parts[stored] = (*parts.get(stored, ()), name)
    return MappingProxyType(parts)


def stored_place(config: ModelConfig, name: str) -> StoredPlace:
    """Where a tensor, a key of :func:`tensor_shapes`, is stored."""
    table = name_table(config)
    found = _LAYER.fullmatch(name)
    if found is None:
        return StoredPlace(table.outer.get(name, name))
    prefix, inner, suffix = found.groups()
    if table.wqkv is not None and inner in QKV:
        return StoredPlace(f"{prefix}{table.wqkv}.{suffix}", inner)
    return StoredPlace(f"{prefix}{table.inner.get(inner, inner)}.{suffix}")


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, middle = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrices = {
        Q: (query, hidden),
        K: (kv, hidden),
        V: (kv, hidden),
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
