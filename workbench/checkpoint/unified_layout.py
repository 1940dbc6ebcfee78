"""Which tensors a unified checkpoint holds, and how each weight type is stored. Reads and writes no files.

Names follow TensorRT-LLM's unified checkpoint; docs/checkpoint_format.md states every one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, Int8Weight, LinearWeight
from workbench.recipe import Int8WeightOnly, Recipe, WeightQuantization

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
            tensors.update(_linear_tensors(config, recipe, f"layers.{layer}.{site}"))
    tensors[FINAL_NORM] = norm
    tensors.update(_linear_tensors(config, recipe, LM_HEAD))
    return tensors


def _linear_tensors(config: ModelConfig, recipe: Recipe, linear: str) -> dict[str, TensorSpec]:
    prefixes = stored_prefixes(linear)
    site = linear if linear == LM_HEAD else linear.split(".", 2)[2]
    rows, columns = linear_shape(config, site)
    shape = (rows // len(prefixes), columns)
    bias = hf_names.has_bias(config, site)
    fields = weight_fields(recipe.weights_of(linear), shape, torch_dtype(recipe.dtype), bias=bias)
    return {f"{prefix}.{field}": spec for field, spec in fields.items() for prefix in prefixes}


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


# ---- how a weight type is stored: what it holds, weight -> tensors, tensors -> weight


SUFFIXES = ("weight", "per_channel_scale", "bias")


def weight_fields(
    how: WeightQuantization | None, shape: tuple[int, int], dtype: torch.dtype, *, bias: bool
) -> dict[str, TensorSpec]:
    """Suffix -> tensor for one linear layer of ``shape`` ``(out, in)``; the first dimension of each is ``out``."""
    match how:
        case None:
            fields = {"weight": TensorSpec(dtype, shape)}
        case Int8WeightOnly():
            fields = {
                "weight": TensorSpec(torch.int8, shape),
                "per_channel_scale": TensorSpec(torch.float32, shape[:1]),
            }
    return fields | ({"bias": TensorSpec(dtype, shape[:1])} if bias else {})


def pack(weight: LinearWeight) -> dict[str, Tensor]:
    """The tensors of a weight by suffix, as :func:`weight_fields` announces them."""
    match weight:
        case DenseWeight():
            fields = {"weight": weight.weight}
        case Int8Weight():
            fields = {"weight": weight.weight, "per_channel_scale": weight.weight_scale}
        case _:
            raise TypeError(f"a checkpoint does not store {type(weight).__name__}")
    return fields | ({"bias": weight.bias} if weight.bias is not None else {})


def unpack(how: WeightQuantization | None, fields: Mapping[str, Tensor]) -> LinearWeight:
    """The weight that :func:`pack` took apart."""
    match how:
        case None:
            return DenseWeight(fields["weight"], fields.get("bias"))
        case Int8WeightOnly():
            return Int8Weight(fields["weight"], fields["per_channel_scale"], fields.get("bias"))
