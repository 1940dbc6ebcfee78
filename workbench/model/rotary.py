"""Rotary positions (RoFormer, arXiv:2104.09864): tables in Llama's half-split layout, for more positions if asked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import LimitError
from workbench.model.config import LINEAR, ModelConfig

# A float64 column of the widest heads then still fits the memory of a desktop; no known model has half as many.
MOST_POSITIONS = 1 << 24


@dataclass(frozen=True)
class RotaryTables:
    """``cos`` and ``sin``, each float32 ``[positions, head_dim / 2]``; computed in float64, so exact to float32."""

    cos: Tensor
    sin: Tensor


def rotary_tables(config: ModelConfig, positions: int) -> RotaryTables:
    """Tables for positions ``0 .. positions - 1``.

    Raises:
        LimitError: the model has fewer positions. Dynamic scaling would turn other keys than those in the cache.
    """
    if positions > min(config.max_position_embeddings, MOST_POSITIONS):
        raise LimitError(
            f"rotary tables for {positions} positions",
            allowed=f"up to {min(config.max_position_embeddings, MOST_POSITIONS)}",
            fix="convert the model with a larger --max_positions"
            if positions <= MOST_POSITIONS
            else "lower max_position_embeddings in the model's config.json",
        )
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rotary_frequencies(config)
    return RotaryTables(angles.cos().float(), angles.sin().float())


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of every pair of channels, float64 ``[head_dim / 2]``."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    return frequencies / scaling.factor if scaling is not None and scaling.kind == LINEAR else frequencies


def stretched(config: ModelConfig, positions: int) -> ModelConfig:
    """The same model with more positions, as a person asked; 0 leaves it as it is.

    Dynamic NTK scaling raises the base with the length of the text. A cache of keys that are turned already can't
    follow it, so the base is raised once: to what that rule gives for a text of ``positions`` tokens. Shorter texts
    are then turned with that base too. Plain RoPE follows the same rule with a factor of 1, as InternLM v1 does.
    Linear scaling stays as it is, up to ``factor`` times the model's own positions.

    Raises:
        LimitError: fewer positions than the model has, or more than linear scaling reaches.
    """
    own, scaling = config.max_position_embeddings, config.rope_scaling
    if positions in (0, own):
        return config
    linear = scaling is not None and scaling.kind == LINEAR
    factor = 1.0 if scaling is None else scaling.factor
    most = int(own * factor) if linear else MOST_POSITIONS
    if not own < positions <= most:
        reach = f"{own} to {most}" if most > own else f"{own}, all that its linear scaling reaches"
        raise LimitError(
            f"max_positions {positions}",
            allowed=f"{reach}; the model's own max_position_embeddings is {own}",
            fix="leave it out to keep the model's own; limits of an engine are max_input_len and max_output_len",
        )
    if linear:
        return dataclasses.replace(config, max_position_embeddings=positions)
    growth = factor * positions / own - (factor - 1)
    # A head of one pair turns by 1 radian per position whatever the base.
    theta = config.rope_theta * growth ** (config.head_dim / max(config.head_dim - 2, 1))
    return dataclasses.replace(config, rope_theta=theta, rope_scaling=None, max_position_embeddings=positions)
