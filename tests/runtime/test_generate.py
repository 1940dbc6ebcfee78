from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.random_model import SMALL, random_weights
from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig
from workbench.recipe import BuildLimits
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession

PROMPTS = [[5, 9, 11, 60, 3], [7], [12, 13, 14], [90, 33, 4, 1, 8, 9, 10]]
LIMITS = BuildLimits(max_batch_size=4, max_input_len=20, max_output_len=32)


def session(config: ModelConfig = SMALL, backend: str = "cpu") -> TorchSession:
    return TorchSession(config, random_weights(config), SessionOptions(torch.float32, backend, limits=LIMITS))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_tokens_are_those_of_hugging_face(backend: str, bias: bool, kv_heads: int) -> None:
    config = dataclasses.replace(SMALL, qkv_bias=bias, output_bias=bias, num_kv_heads=kv_heads)
    reference = HFReference.from_weights(config, random_weights(config), torch.float32)
    assert generate(session(config, backend), PROMPTS, 32) == reference.generate(PROMPTS, 32)


def test_a_row_stops_at_eos_and_streams_no_more() -> None:
    held = session()
    free = generate(held, PROMPTS, 16, eos_token_ids=[])
    assert all(len(row) == 16 for row in free)
    eos = free[1][5]
    expected = [row[: row.index(eos)] if eos in row else row for row in free]
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    result = generate(held, PROMPTS, 16, eos_token_ids=[eos], on_token=lambda row, token: streamed[row].append(token))
    assert result == expected
    assert streamed == expected


def test_the_models_own_eos_ends_a_row() -> None:
    first = generate(session(), [[7]], 1, eos_token_ids=[])[0][0]
    assert generate(session(dataclasses.replace(SMALL, eos_token_ids=(first,))), [[7]], 8) == [[]]


@pytest.mark.parametrize("length", [0, 33])
def test_an_output_beyond_the_limits_is_refused_before_anything_runs(length: int) -> None:
    with pytest.raises(LimitError, match=f"max_output_len {length}; allowed: 1 to 32"):
        generate(session(), [[7]], length)


def test_prompt_and_output_must_fit_the_positions_together() -> None:
    held = session(dataclasses.replace(SMALL, max_position_embeddings=24))
    with pytest.raises(LimitError, match=r"20 tokens with max_output_len 10; .* 24 together; ask for at most 4 tokens"):
        generate(held, [[1] * 20], 10)


def test_limits_of_prompts_hold_here_too() -> None:
    with pytest.raises(LimitError, match="prompt 1 has 21 tokens"):
        generate(session(), [[1] * 21], 4)
