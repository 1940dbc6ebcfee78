"""Hugging Face beside our decoding: what is generated while it is timed; the times are nobody's business here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.random_model import SMALL, random_weights
from workbench.evaluation import gpu_reference
from workbench.evaluation.gpu_reference import COMPILED_LENGTHS, EAGER_LENGTHS, HuggingFaceDecoding


class _Clock:
    """Every interval takes as long as tokens were generated in it."""

    tokens = 0

    def record(self) -> None:
        self.at = _Clock.tokens

    def elapsed_time(self, end: _Clock) -> float:
        return float(end.at - self.at)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> HuggingFaceDecoding:
    monkeypatch.setattr(gpu_reference, "timer", _Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda *_: None)
    config = replace(SMALL, max_position_embeddings=128)
    held = HuggingFaceDecoding(config, random_weights(config), torch.device("cpu"))
    held.model.float()
    return held


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_is_the_difference_of_two_lengths_over_one_cache(
    reference: HuggingFaceDecoding, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    runs: list[tuple[int, Any]] = []
    outputs: list[list[int]] = []
    generate = reference.model.generate

    def counted(**given: Any) -> Any:
        settings = given["generation_config"]
        assert (settings.compile_config is not None) == compiled
        settings.compile_config = None
        runs.append((settings.max_new_tokens, given.get("past_key_values")))
        found = generate(**given)
        _Clock.tokens += found.shape[1] - given["input_ids"].shape[1]
        outputs.append(found[0].tolist())
        return found

    monkeypatch.setattr(reference.model, "generate", counted)
    assert reference.step_ms(2, 5, compiled=compiled) == 1.0
    short, long = COMPILED_LENGTHS if compiled else EAGER_LENGTHS
    assert [length for length, _ in runs] == [short, short, long, short, long]
    assert len({id(cache) for _, cache in runs}) == 1
    assert (runs[0][1] is not None) == compiled
    # The cache was emptied in between: the longer runs begin as the shorter ones did.
    assert all(output == outputs[2][: len(output)] for output in outputs)


def test_bytes_are_those_of_the_weights_a_step_reads(reference: HuggingFaceDecoding) -> None:
    config = reference.config
    parameters = sum(parameter.numel() for parameter in reference.model.parameters())
    assert reference.weight_bytes == 2 * (parameters - config.vocab_size * config.hidden_size)
    assert reference.kv_bytes == 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim


def test_a_prefill_reads_the_whole_prompt(reference: HuggingFaceDecoding, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = reference.model.forward

    def counted(**given: Any) -> Any:
        _Clock.tokens += given["input_ids"].numel()
        return forward(**given)

    monkeypatch.setattr(reference.model, "forward", counted)
    assert reference.prefill_ms(3, 7) == 21
