"""Tokens chosen where the logits are: the host sampler's, whatever the penalties, filters and bad words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_weights
from workbench.recipe import BuildLimits
from workbench.runtime.device_sampling import DeviceSampler, fetched
from workbench.runtime.generate import ChoiceSink, generate
from workbench.runtime.sampling import Sampler, SamplingError, SamplingOptions
from workbench.runtime.session import SessionOptions, TokenSession, TorchSession

VOCAB, STEPS = 200, 24
PROMPTS = [[1, 2, 3], [7], [1, 2, 3], [9, 8, 7, 6, 5, 4], [150, 150]]
WORDS = ((5,), (7, 11), (1, 2, 3), (9, 8, 7, 6, 5, 4, 0), (VOCAB + 3,), (12,))
OPTIONS = {
    "greedy": SamplingOptions(),
    "temperature 0": SamplingOptions(temperature=0, top_k=0),
    "draws": SamplingOptions(top_k=0, temperature=1.7, random_seed=3),
    "top-k": SamplingOptions(top_k=6, temperature=1.5),
    "top-p": SamplingOptions(top_k=0, top_p=0.8, temperature=2.0),
    "both": SamplingOptions(top_k=20, top_p=0.6, temperature=3.0),
    "all but the vocabulary": SamplingOptions(top_k=VOCAB + 9, top_p=0.999),
    "hardly anything": SamplingOptions(top_k=0, top_p=1e-9),
    "coldest": SamplingOptions(top_k=0, temperature=1e-320),
    "hottest": SamplingOptions(top_k=0, top_p=0.5, temperature=1e300),
    "repetition": SamplingOptions(repetition_penalty=1.3),
    "presence": SamplingOptions(top_k=0, presence_penalty=0.7, frequency_penalty=0.3),
    "bad words": SamplingOptions(bad_words=WORDS),
    "everything": SamplingOptions(
        1.4, 30, 0.9, 1.2, -0.3, 0.2, random_seed=11, bad_words=((5,), (7, 11), (3, 4, 5, 6))
    ),
}  # fmt: skip
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


def _logits(seed: int, rows: int = len(PROMPTS), vocab: int = VOCAB) -> Tensor:
    """As of a float16 head: coarse enough for many to be equal."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * 3).mul(8).round().div(8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_choices_are_those_of_the_host(options: SamplingOptions, device: str) -> None:
    host = Sampler(options, PROMPTS)
    sampler = DeviceSampler(options, PROMPTS, steps=STEPS, vocab=VOCAB, device=device)
    for step in range(STEPS):
        logits = _logits(step)
        expected = host.choose(logits)
        assert sampler.choose(logits.to(device)).tolist() == expected
        assert sampler.told.tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_real_vocabulary_and_ties_at_every_limit(device: str) -> None:
    vocab, prompts = 50_000, [[1], [2]]
    for options in (SamplingOptions(top_k=50), SamplingOptions(top_k=0, top_p=0.95, temperature=1.5)):
        host = Sampler(options, prompts)
        sampler = DeviceSampler(options, prompts, steps=6, vocab=vocab, device=device)
        for step in range(6):
            logits = _logits(step, 2, vocab).round()
            assert sampler.choose(logits.to(device)).tolist() == host.choose(logits)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_choice_waits_for_nothing(options: SamplingOptions) -> None:
    sampler = DeviceSampler(options, PROMPTS, steps=2, vocab=VOCAB, device="cuda")
    logits = _logits(0).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.choose(logits)
        sampler.choose(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(top_k=0, top_p=0.5)])
def test_logits_that_are_no_numbers_are_told(options: SamplingOptions, wrong: float) -> None:
    sampler = DeviceSampler(options, [[1], [2]], steps=1, vocab=VOCAB, device="cpu")
    logits = _logits(0, 2)
    logits[1, 4] = wrong
    ids = sampler.choose(logits)
    assert 0 <= int(ids.min()) <= int(ids.max()) < VOCAB  # the next step can go on with them
    with pytest.raises(SamplingError, match=r"no numbers \(NaN or infinite\); compare the checkpoint"):
        list(fetched(iter([sampler.told])))


def test_bad_words_that_leave_nothing_are_told() -> None:
    options = SamplingOptions(bad_words=tuple((token,) for token in range(VOCAB)))
    sampler = DeviceSampler(options, [[1]], steps=1, vocab=VOCAB, device="cpu")
    sampler.choose(_logits(0, 1))
    with pytest.raises(SamplingError, match="the bad words leave no token to go on with; take some of them out"):
        list(fetched(iter([sampler.told])))


def test_tokens_come_one_step_late_but_for_the_first() -> None:
    asked: list[int] = []

    def steps() -> Iterator[Tensor]:
        for step in range(4):
            asked.append(step)
            yield torch.tensor([step])

    seen = [(tokens, len(asked)) for tokens in fetched(steps())]
    assert seen == [([0], 1), ([1], 3), ([2], 4), ([3], 4)]


class ChoosingSession(TorchSession):
    """A plain session that chooses as one on a GPU does, and tells how many steps it ran."""

    ran = 0

    def decode(self, ids: Tensor) -> Tensor:
        self.ran += 1
        return super().decode(ids)

    def tokens(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, max_output_len: int
    ) -> Iterator[list[int]]:
        return fetched(self._chosen(prompts, sampling, max_output_len))

    def _chosen(self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, most: int) -> Iterator[Tensor]:
        sampler = DeviceSampler(sampling, prompts, steps=most, vocab=self.config.vocab_size, device="cpu")
        logits = self.prefill(prompts)
        for step in range(most):
            logits = self.decode(sampler.told) if step else logits
            sampler.choose(logits)
            yield sampler.told


def _session(kind: type[TorchSession], **changes: Any) -> Any:
    config = dataclasses.replace(SMALL, **changes)
    limits = BuildLimits(max_batch_size=4, max_input_len=20, max_output_len=32)
    return kind(config, random_weights(config), SessionOptions(torch.float32, "cpu", limits=limits))


@pytest.mark.parametrize("options", [OPTIONS["greedy"], OPTIONS["both"], OPTIONS["repetition"]])
def test_generated_texts_are_those_of_the_host(options: SamplingOptions) -> None:
    host, device = _session(TorchSession), _session(ChoosingSession)
    assert isinstance(device, TokenSession)
    assert not isinstance(host, TokenSession)
    prompts = [[5, 9, 11], [7], [12, 13, 14, 1]]
    free = generate(host, prompts, 16, eos_token_ids=[], sampling=options)
    assert generate(device, prompts, 16, eos_token_ids=[], sampling=options) == free
    assert device.ran == 15  # none beyond the longest output
    ends = {free[0][4], free[1][7]}
    streamed: list[tuple[int, int]] = []
    found = generate(
        device, prompts, 16, eos_token_ids=ends, sampling=options, on_token=lambda *told: streamed.append(told)
    )
    assert found == generate(host, prompts, 16, eos_token_ids=ends, sampling=options)
    assert [[token for place, token in streamed if place == row] for row in range(3)] == found


def test_who_wants_probabilities_gets_the_hosts_choices() -> None:
    device = _session(ChoosingSession)
    told: list[int] = []
    rows = generate(device, [[5]], 4, eos_token_ids=[], on_token=ChoiceSink(lambda _, choice: told.append(choice.id)))
    assert rows == [told]
