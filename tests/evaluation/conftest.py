"""Small random models in memory with token ids, for tests that need no folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_weights
from workbench.model.config import ModelConfig
from workbench.model.weights import ModelWeights


@dataclass(frozen=True)
class SmallModel:
    """A model in memory and a batch of token ids ``[2, 9]`` for it."""

    config: ModelConfig
    weights: ModelWeights
    ids: Tensor


@pytest.fixture(scope="session")
def small_model() -> Callable[..., SmallModel]:
    """``small_model(kv_heads=4, qkv_bias=True, output_bias=True, dtype=torch.float32)``."""

    def make(
        *, kv_heads: int = 4, qkv_bias: bool = True, output_bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> SmallModel:
        config = replace(SMALL, num_kv_heads=kv_heads, qkv_bias=qkv_bias, output_bias=output_bias)
        ids = torch.randint(3, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
        return SmallModel(config, random_weights(config, dtype), ids)

    return make
