"""Rotary position embedding tables (RoFormer, arXiv:2104.09864), in the half-split layout of Hugging Face Llama."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.config import ModelConfig


@dataclass(frozen=True)
class RotaryTables:
    """``cos`` and ``sin``, each float32 ``[positions, head_dim / 2]``; computed in float64, so exact to float32."""

    cos: Tensor
    sin: Tensor


def rotary_tables(config: ModelConfig, positions: int) -> RotaryTables:
    """Tables for positions ``0 .. positions - 1``."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * config.rope_theta**-exponents
    return RotaryTables(angles.cos().float(), angles.sin().float())
