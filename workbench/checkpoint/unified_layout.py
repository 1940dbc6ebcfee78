"""Which tensors a unified checkpoint holds, and their names. Reads and writes no files.

Names follow TensorRT-LLM's unified checkpoint; docs/checkpoint_format.md states every one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.weight_fields import StoredLinear, is_static, weight_fields
from workbench.model.config import ModelConfig
from workbench.model.weights import KVScales
from workbench.recipe import Int8KVCache, Recipe

EMBEDDING = "transformer.vocab_embedding.weight"
FINAL_NORM = "transformer.ln_f.weight"
LM_HEAD = "lm_head"
ATTENTION_NORM = "input_layernorm.weight"
MLP_NORM = "post_layernorm.weight"

# Our linear layer -> the stored layers whose rows it stacks. `fc` is the gate, `gate` the up projection.
LINEARS: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("attention.qkv",),
    "attention.o": ("attention.dense",),
    "mlp.gate_up": ("mlp.fc", "mlp.gate"),
    "mlp.down": ("mlp.proj",),
}

# Where TensorRT-LLM keeps 127 / max|X| of the input of a linear layer whose activations are static.
INPUT_FACTORS: dict[str, str] = {
    "attention.qkv": "input_layernorm.scale_to_int",
    "attention.o": "attention.quantization_scaling_factor",
    "mlp.gate_up": "post_layernorm.scale_to_int",
    "mlp.down": "mlp.quantization_scaling_factor",
}
# TensorRT-LLM expects a `smoother` with these.
WITH_SMOOTHER = ("attention.o", "mlp.down")

KV_FACTOR = "attention.kv_cache_scaling_factor"
KEY_SCALE = "attention.k_cache_scale"
VALUE_SCALE = "attention.v_cache_scale"


def layer_prefix(layer: int) -> str:
    """What the names of one layer begin with."""
    return f"transformer.layers.{layer}."


def linear_names(config: ModelConfig) -> Iterator[str]:
    """Every linear layer as the recipe names it: ``layers.3.mlp.down`` ... ``lm_head``."""
    for layer in range(config.num_layers):
        yield from (f"layers.{layer}.{site}" for site in LINEARS)
    yield LM_HEAD


def stored_prefixes(linear: str) -> list[str]:
    """A linear layer's stored names without suffix: ``layers.3.mlp.down`` -> ``transformer.layers.3.mlp.proj``."""
    if linear == LM_HEAD:
        return [LM_HEAD]
    _, layer, site = linear.split(".", 2)
    return [layer_prefix(int(layer)) + part for part in LINEARS[site]]


def checkpoint_tensors(config: ModelConfig, recipe: Recipe) -> dict[str, TensorSpec]:
    """Every tensor of a checkpoint; those that one layer stacks are neighbours, so that reading can join them."""
    dtype = torch_dtype(recipe.dtype)
    norm = TensorSpec(dtype, (config.hidden_size,))
    tensors = {EMBEDDING: TensorSpec(dtype, (config.vocab_size, config.hidden_size))}
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        tensors[prefix + ATTENTION_NORM] = norm
        tensors[prefix + MLP_NORM] = norm
        for site in LINEARS:
            tensors.update(linear_tensors(config, recipe, f"layers.{layer}.{site}"))
        tensors.update({prefix + name: spec for name, spec in _layer_scales(config, recipe, layer).items()})
    tensors[FINAL_NORM] = norm
    tensors.update(linear_tensors(config, recipe, LM_HEAD))
    return tensors


def linear_tensors(config: ModelConfig, recipe: Recipe, linear: str) -> dict[str, TensorSpec]:
    """The tensors that store one linear layer, named as :func:`linear_names` names it."""
    prefixes, site = stored_prefixes(linear), site_of(linear)
    rows, columns = linear_shape(config, site)
    shape = (rows // len(prefixes), columns)
    bias = hf_names.has_bias(config, site)
    stored = StoredLinear(shape, torch_dtype(recipe.dtype), bias=bias, smoother=site in WITH_SMOOTHER)
    fields = weight_fields(recipe.weights_of(linear), stored)
    return {f"{prefix}.{field}": spec for field, spec in fields.items() for prefix in prefixes}


def _layer_scales(config: ModelConfig, recipe: Recipe, layer: int) -> dict[str, TensorSpec]:
    """Scales of a layer that belong to no linear layer's own tensors."""
    one = TensorSpec(torch.float32, (1,))
    static = [site for site in INPUT_FACTORS if is_static(recipe.weights_of(f"layers.{layer}.{site}"))]
    scales = {INPUT_FACTORS[site]: one for site in static}
    if recipe.kv_cache is not None:
        own = TensorSpec(torch.float32, (config.num_kv_heads,)) if recipe.kv_cache.granularity == "per_head" else one
        scales |= {KV_FACTOR: one, KEY_SCALE: own, VALUE_SCALE: own}
    return scales


def site_of(linear: str) -> str:
    """``layers.3.mlp.down`` -> ``mlp.down``; ``lm_head`` is its own."""
    return linear if linear == LM_HEAD else linear.split(".", 2)[2]


def linear_shape(config: ModelConfig, site: str) -> tuple[int, int]:
    """``(out, in)`` of a fused linear layer; ``site`` is a key of :data:`LINEARS` or ``lm_head``."""
    hidden, attended = config.hidden_size, config.num_heads * config.head_dim
    return {
        "attention.qkv": (config.qkv_features, hidden),
        "attention.o": (hidden, attended),
        "mlp.gate_up": (2 * config.intermediate_size, hidden),
        "mlp.down": (hidden, config.intermediate_size),
        LM_HEAD: (config.vocab_size, hidden),
    }[site]


def pack_kv_scales(scales: KVScales) -> dict[str, Tensor]:
    """The tensors of an INT8 KV cache's scales by name within a layer.

    TensorRT-LLM's one factor covers keys and values of all heads; ours are apart.
    """
    factor = torch.maximum(scales.key.max(), scales.value.max())
    return {
        KV_FACTOR: factor.reshape(1),
        KEY_SCALE: scales.key.reshape(-1),
        VALUE_SCALE: scales.value.reshape(-1),
    }


def unpack_kv_scales(how: Int8KVCache, key: Tensor, value: Tensor) -> KVScales:
    """The scales that :func:`pack_kv_scales` took apart: ``[kv_heads]`` per head, ``[]`` per tensor."""
    if how.granularity == "per_head":
        return KVScales(key, value)
    return KVScales(key.reshape(()), value.reshape(()))
