"""Rotary tables and scaling, judged by Hugging Face's Llama of the same configuration."""

from __future__ import annotations

import dataclasses

import mpmath
import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig, RopeScaling
from workbench.model.rotary import MOST_POSITIONS, rotary_tables, stretched
from workbench.runtime.session import SessionOptions, TorchSession

LINEAR, DYNAMIC = RopeScaling("linear", 4.0), RopeScaling("dynamic", 6.0)
IDS = torch.randint(0, SMALL.vocab_size, (2, 64), generator=torch.Generator().manual_seed(3))


def ours(config: ModelConfig, ids: Tensor = IDS, dtype: torch.dtype = torch.float32) -> Tensor:
    return TorchSession(config, random_weights(config), SessionOptions(dtype, "torch")).logits(ids)


def theirs(config: ModelConfig, ids: Tensor = IDS, dtype: torch.dtype = torch.float32) -> Tensor:
    return HFReference.from_weights(config, random_weights(config), dtype).logits(ids)


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e7])
@pytest.mark.parametrize("scaling", [None, LINEAR, DYNAMIC, RopeScaling("dynamic", 1.0)], ids=str)
def test_logits_are_those_of_hugging_face(theta: float, scaling: RopeScaling | None) -> None:
    config = dataclasses.replace(SMALL, rope_theta=theta, rope_scaling=scaling)
    assert relative_l2(ours(config), theirs(config)) < TOLERANCE[torch.float32]["model"]


def test_linear_scaling_in_float64() -> None:
    config = dataclasses.replace(SMALL, rope_scaling=LINEAR)
    plain = ours(dataclasses.replace(SMALL), dtype=torch.float64)
    wide = ours(config, dtype=torch.float64)
    assert relative_l2(wide, theirs(config, dtype=torch.float64)) < 1e-6
    assert relative_l2(plain, wide) > 0.01


def test_dynamic_scaling_is_plain_within_the_models_positions() -> None:
    plain, dynamic = (rotary_tables(dataclasses.replace(SMALL, rope_scaling=s), 64) for s in (None, DYNAMIC))
    assert torch.equal(plain.cos, dynamic.cos)
    assert torch.equal(plain.sin, dynamic.sin)


@pytest.mark.parametrize("theta", [1e4, 5e7])
def test_tables_are_exact_to_float32_far_out(theta: float) -> None:
    """Every entry of the last positions of a long model against 50 digits."""
    config = dataclasses.replace(SMALL, head_dim=128, rope_theta=theta, max_position_embeddings=32768)
    tables = rotary_tables(config, 32768)
    with mpmath.workdps(50):
        for position in (1, 4095, 32767):
            for pair in range(0, 64, 7):
                angle = position * mpmath.mpf(theta) ** (-mpmath.mpf(2 * pair) / 128)
                for table, function in ((tables.cos, mpmath.cos), (tables.sin, mpmath.sin)):
                    assert float(table[position, pair]) == pytest.approx(float(function(angle)), rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("scaling", [None, DYNAMIC], ids=str)
def test_a_stretched_model_is_hugging_faces_at_that_length(scaling: RopeScaling | None) -> None:
    """HF raises the base for the text at hand; ours is raised once, for a text of all positions."""
    config = dataclasses.replace(SMALL, max_position_embeddings=40, rope_scaling=scaling)
    wide = stretched(config, 64)
    assert wide.rope_scaling is None
    assert wide.max_position_embeddings == 64
    reference = HFReference.from_weights(
        dataclasses.replace(config, rope_scaling=scaling or RopeScaling("dynamic", 1.0)),
        random_weights(config),
        torch.float32,
    )
    with torch.inference_mode():
        expected = reference.model(input_ids=IDS).logits
    assert relative_l2(ours(wide), expected) < TOLERANCE[torch.float32]["model"]
    assert relative_l2(ours(dataclasses.replace(config, max_position_embeddings=64)), expected) > 0.01


def test_a_linear_model_is_stretched_by_its_factor_at_most() -> None:
    config = dataclasses.replace(SMALL, rope_scaling=LINEAR)
    assert stretched(config, 256) == dataclasses.replace(config, max_position_embeddings=256)
    with pytest.raises(LimitError, match=r"max_positions 257; allowed: 64 to 256; the model's own .* 64; leave it out"):
        stretched(config, 257)


@pytest.mark.parametrize("positions", [0, 64])
def test_nothing_to_stretch(positions: int) -> None:
    assert stretched(SMALL, positions) == SMALL


@pytest.mark.parametrize("positions", [63, -1, MOST_POSITIONS + 1])
def test_what_cannot_be_stretched(positions: int) -> None:
    with pytest.raises(LimitError, match=f"max_positions {positions}; allowed: 64 to {MOST_POSITIONS}; .* own .* 64"):
        stretched(SMALL, positions)


def test_a_head_of_one_pair_has_no_base_to_raise() -> None:
    config = dataclasses.replace(SMALL, head_dim=2)
    assert torch.equal(rotary_tables(stretched(config, 128), 64).cos, rotary_tables(config, 64).cos)


def test_no_tables_beyond_the_models_positions() -> None:
    with pytest.raises(LimitError, match=r"tables for 65 positions; allowed: up to 64; .* larger --max_positions"):
        rotary_tables(SMALL, 65)
    huge = dataclasses.replace(SMALL, max_position_embeddings=10**12)
    with pytest.raises(LimitError, match=f"allowed: up to {MOST_POSITIONS}; lower max_position_embeddings"):
        rotary_tables(huge, 10**12)
