from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.random_model import SMALL, random_weights
from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig
from workbench.recipe import BuildLimits
from workbench.runtime.generate import ChoiceSink, TokenChoice, follow, generate
from workbench.runtime.sampling import SamplingOptions
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


def test_a_sink_may_end_its_row() -> None:
    held = session()
    free = generate(held, PROMPTS, 8, eos_token_ids=[])
    ended = generate(held, PROMPTS, 8, eos_token_ids=[], on_token=lambda row, token: row == 2 and token == free[2][3])
    assert ended == [*free[:2], free[2][: free[2].index(free[2][3]) + 1], free[3]]


def test_probabilities_of_choices_are_the_models() -> None:
    held = session(backend="torch")
    told: list[list[TokenChoice]] = [[] for _ in PROMPTS]
    sink = ChoiceSink(lambda row, choice: told[row].append(choice), top=3)
    rows = generate(held, PROMPTS, 5, eos_token_ids=[], on_token=sink)
    for prompt, row, choices in zip(PROMPTS, rows, told, strict=True):
        expected = held.logits(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert [choice.id for choice in choices] == row
        for choice, logprobs in zip(choices, expected, strict=True):
            assert choice.logprob == pytest.approx(float(logprobs[choice.id]), abs=1e-4)
            assert choice.top[0] == (choice.id, choice.logprob)
            assert [number for number, _ in choice.top] == logprobs.topk(3).indices.tolist()


def test_another_models_output_is_followed() -> None:
    """Greedy output followed by the model that made it: every first choice is the output itself."""
    held = session()
    told: list[list[TokenChoice]] = [[] for _ in PROMPTS]
    rows = generate(held, PROMPTS, 6, eos_token_ids=[], on_token=ChoiceSink(lambda row, said: told[row].append(said)))
    followed = follow(held, PROMPTS, rows)
    assert [[choice.id for choice in row] for row in followed] == rows
    for mine, again in zip(told, followed, strict=True):
        assert [choice.top[0][0] for choice in again] == [choice.id for choice in mine]
        assert [choice.logprob for choice in again] == pytest.approx([choice.logprob for choice in mine], abs=1e-4)
    other = [[11], [], [5, 5, 5], rows[3]]
    choices = follow(held, PROMPTS, other, top=1)
    assert [[choice.id for choice in row] for row in choices] == other
    assert all(choice.top[0][1] >= choice.logprob for row in choices for choice in row)


def test_what_cannot_be_followed() -> None:
    with pytest.raises(LimitError, match="token id 97; allowed: 0 to 96"):
        follow(session(), [[1]], [[97]])
    with pytest.raises(LimitError, match="max_output_len 33; allowed: 1 to 32"):
        follow(session(), [[1]], [[1] * 33])
    with pytest.raises(LimitError, match="ask for at least one"):
        follow(session(), [[1]], [[]])


def test_draws_do_not_depend_on_the_batch() -> None:
    options = SamplingOptions(top_k=0, temperature=2.0, random_seed=3)
    held = session(backend="torch")
    together = generate(held, PROMPTS, 12, eos_token_ids=[], sampling=options)
    assert together == [generate(held, [prompt], 12, eos_token_ids=[], sampling=options)[0] for prompt in PROMPTS]
    assert together == generate(held, PROMPTS, 12, eos_token_ids=[], sampling=options)
    assert together != generate(held, PROMPTS, 12, eos_token_ids=[])
