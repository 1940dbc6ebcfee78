"""Sampling: filters judged by transformers, draws by their frequencies and by who shares the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workbench.runtime import sampling
from workbench.runtime.sampling import Sampler, SamplingError, SamplingOptions, candidates, penalized

VOCAB = 97
LOGITS = 3 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(5))


def token_probabilities(logits: Tensor, options: SamplingOptions) -> Tensor:
    """``[batch, vocab]`` float64 from what each row draws from."""
    result = torch.zeros(logits.shape, dtype=torch.float64)
    for row, held in zip(result, logits, strict=True):
        ids, probabilities = candidates(held, options)
        row[ids] = probabilities
    return result


def theirs(options: SamplingOptions, logits: Tensor = LOGITS) -> Tensor:
    steps: list[Any] = [TemperatureLogitsWarper(options.temperature)]
    steps += [TopKLogitsWarper(options.top_k)] if options.top_k else []
    steps += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    return LogitsProcessorList(steps)(ids, logits.double()).softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, VOCAB, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.93, 1.0])
def test_filters_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    options = SamplingOptions(temperature, top_k, top_p)
    ours = token_probabilities(LOGITS, options)
    torch.testing.assert_close(ours, theirs(options), rtol=1e-9, atol=1e-12)
    assert torch.equal(ours > 0, theirs(options) > 0)


def test_filters_are_the_same_where_few_tokens_do_not_reach_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_FEW", 3)
    for top_p in (0.05, 0.5, 0.93):
        options = SamplingOptions(top_k=0, top_p=top_p)
        torch.testing.assert_close(token_probabilities(LOGITS, options), theirs(options), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [SamplingOptions(top_k=2), SamplingOptions(top_k=0, top_p=0.7)])
def test_ties_with_the_last_that_is_kept_stay(options: SamplingOptions) -> None:
    probabilities = token_probabilities(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), options)
    assert (probabilities > 0).tolist() == [[True, True, True, False]]


def test_penalties_and_bad_words_are_those_of_transformers() -> None:
    prompt, output = [3, 9, 9, 20], [9, 41, 7]
    bad = ((5,), (41, 7, 8), (7, 11), (41, 12))
    options = SamplingOptions(repetition_penalty=1.3, bad_words=bad)
    ids = torch.tensor([prompt + output])
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            NoBadWordsLogitsProcessor([list(word) for word in bad], eos_token_id=[2]),
        ]
    )
    expected = processors(ids, LOGITS[:1].double())[0]
    ours = penalized(LOGITS[0].double(), prompt, output, options)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    assert torch.isinf(ours).nonzero().flatten().tolist() == [5, 8, 11]


def test_presence_and_frequency_count_the_output_alone() -> None:
    options = SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25)
    ours = penalized(LOGITS[0].double(), [3, 3, 3], [9, 9, 4], options)
    changed = {int(place): float(LOGITS[0, place] - ours[place]) for place in (ours != LOGITS[0].double()).nonzero()}
    assert changed == pytest.approx({9: 1.0, 4: 0.75})


def test_greedy_is_the_most_probable_token() -> None:
    expected = LOGITS.argmax(-1).tolist()
    prompts = [[1]] * 4
    for options in (
        SamplingOptions(),
        SamplingOptions(temperature=0, top_k=0),
        SamplingOptions(top_k=1, temperature=3),
    ):
        assert Sampler(options, prompts).choose(LOGITS) == expected
    tiny = SamplingOptions(temperature=1e-300, top_k=0)
    assert Sampler(tiny, prompts).choose(LOGITS) == expected


def test_greedy_goes_round_bad_words_and_penalties() -> None:
    first, second = LOGITS[0].topk(2).indices.tolist()
    assert Sampler(SamplingOptions(bad_words=((first,),)), [[1]]).choose(LOGITS[:1]) == [second]
    sampler = Sampler(SamplingOptions(presence_penalty=1000), [[1]])
    assert [sampler.choose(LOGITS[:1])[0] for _ in range(2)] == [first, second]
    assert LOGITS[0].argmax() == first


def test_a_row_draws_the_same_whoever_is_beside_it() -> None:
    options = SamplingOptions(top_k=0, temperature=1.5, random_seed=7)
    prompts = [[1, 2], [3], [1, 2], [4, 5, 6]]
    batch = Sampler(options, prompts)
    together = [batch.choose(LOGITS) for _ in range(20)]
    for row in (0, 1, 3):
        alone = Sampler(options, [prompts[row]])
        assert [alone.choose(LOGITS[row : row + 1])[0] for _ in range(20)] == [step[row] for step in together]
    same = Sampler(options, [[1, 2], [1, 2]])
    twice = [same.choose(LOGITS[:1].expand(2, -1)) for _ in range(20)]
    assert [step[0] for step in twice] == [step[0] for step in together]
    assert [step[0] for step in twice] != [step[1] for step in twice]
    other = Sampler(SamplingOptions(top_k=0, temperature=1.5, random_seed=8), prompts)
    assert [other.choose(LOGITS) for _ in range(20)] != together


def test_frequencies_of_draws_are_the_probabilities() -> None:
    """Chi-square over 20,000 draws; the seed is fixed, so that the test is too."""
    options = SamplingOptions(temperature=1.3, top_k=8, random_seed=1)
    expected = token_probabilities(LOGITS[:1], options)[0]
    sampler = Sampler(options, [[1, 2, 3]])
    draws = torch.tensor([sampler.choose(LOGITS[:1])[0] for _ in range(20000)])
    counts = torch.bincount(draws, minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = float(((counts - 20000 * expected)[kept] ** 2 / (20000 * expected[kept])).sum())
    # The 99.9 % point of chi-square with 7 degrees of freedom.
    assert statistic < 24.32


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; allowed: numbers from 0, which is greedy"),
        ({"temperature": math.nan}, "temperature is nan; allowed: a finite number"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf; allowed: a finite number"),
        ({"top_k": -1}, "top_k is -1; allowed: whole numbers from 0, which sets no limit"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed: above 0, up to 1; leave it out for no limit, or set top_k to 1"),
        ({"top_p": 1.1}, "top_p is 1.1; allowed: above 0, up to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; allowed: numbers above 0"),
        ({"random_seed": -1}, "random_seed is -1; allowed: whole numbers from 0"),
        ({"bad_words": ((),)}, r"bad_words is \(\(\),\); allowed: words of at least one token"),
    ],
)
def test_options_without_a_meaning(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        SamplingOptions(**choices)


def test_logits_that_nothing_can_be_drawn_from() -> None:
    with pytest.raises(SamplingError, match=r"logits are no numbers \(NaN or infinite\); compare"):
        Sampler(SamplingOptions(top_k=0), [[1]]).choose(torch.full((1, VOCAB), math.nan))
    every = tuple((token,) for token in range(VOCAB))
    with pytest.raises(SamplingError, match="bad words leave no token to go on with; take some of them out"):
        Sampler(SamplingOptions(bad_words=every), [[1]]).choose(LOGITS[:1])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_greedy_refuses_logits_that_are_no_numbers(wrong):
    with pytest.raises(SamplingError, match=r"no numbers \(NaN or infinite\); compare the checkpoint"):
        Sampler(SamplingOptions(), [[1]]).choose(torch.tensor([[1.0, wrong, 3.0]]))
