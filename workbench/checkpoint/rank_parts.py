"""What each rank of a model holds, in parts whose sizes follow from the model's sizes and the recipe. Reads no weights.

Who holds what is :class:`workbench.parallel.mapping.Mapping`'s to say; how a part is stored, the checkpoint layout's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.model.config import ModelConfig
from workbench.parallel.mapping import Mapping
from workbench.recipe import Recipe

EMBEDDING, NORMS = "embedding", "norms"


@dataclass(frozen=True)
class Part:
    """One part of a rank's weights.

    Attributes:
        name: a linear layer as the recipe names it (``layers.3.mlp.down``, ``lm_head``), ``embedding`` or ``norms``.
        kind: how it is stored: a dtype, or a kind of quantization.
        shape: ``(out, in)`` of a linear layer or the embedding; ``(values,)`` of norms and scales.
        bytes: scales and biases included.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Values, without scales and biases."""
        return math.prod(self.shape)

    @property
    def site(self) -> str:
        """``layers.3.mlp.down`` -> ``mlp.down``; other names are their own."""
        return layout.site_of(self.name) if self.name.startswith("layers.") else self.name


def rank_config(config: ModelConfig, mapping: Mapping) -> ModelConfig:
    """The widths of one rank's layers: its heads and channels; the number of layers stays.

    Raises:
        WorkbenchError: heads or channels do not divide over the ranks.
    """
    return replace(
        config,
        num_heads=len(mapping.split(config.num_heads, "query heads")),
        num_kv_heads=len(mapping.split(config.num_kv_heads, "key/value heads")),
        intermediate_size=len(mapping.split(config.intermediate_size, "intermediate channels")),
    )


def rank_parts(config: ModelConfig, recipe: Recipe, mapping: Mapping | None = None) -> list[Part]:
    """Everything that one rank holds.

    Raises:
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    mapping = mapping or Mapping()
    own = rank_config(config, mapping)
    dtype = recipe.dtype
    table = TensorSpec(torch_dtype(dtype), (config.vocab_size, config.hidden_size))
    layers = mapping.layers(config.num_layers)
    norms = 2 * len(layers) * config.hidden_size
    parts: list[Part] = []
    if mapping.is_first_stage:
        parts.append(Part(EMBEDDING, dtype, table.shape, table.bytes))
    for layer in layers:
        parts += [_linear(own, recipe, f"layers.{layer}.{site}") for site in layout.LINEARS]
    if mapping.is_last_stage:
        norms += config.hidden_size
        parts.append(_linear(own, recipe, layout.LM_HEAD))
    return [*parts, Part(NORMS, dtype, (norms,), norms * table.dtype.itemsize)]


def _linear(own: ModelConfig, recipe: Recipe, linear: str) -> Part:
    how = recipe.weights_of(linear)
    stored = layout.linear_tensors(own, recipe, linear)
    return Part(
        linear,
        recipe.dtype if how is None else how.kind,
        layout.linear_shape(own, layout.site_of(linear)),
        sum(spec.bytes for spec in stored.values()),
    )


def every_rank(tp_size: int, pp_size: int) -> Iterator[Mapping]:
    """The places of all ranks."""
    return (Mapping(tp_size, pp_size, rank) for rank in range(tp_size * pp_size))


def total_bytes(parts: Iterable[Part]) -> int:
    """Bytes of the weights."""
    return sum(part.bytes for part in parts)
