from __future__ import annotations

import math

import pytest
import torch

from workbench.errors import LimitError
from workbench.evaluation.perplexity import Perplexity, next_token_nll, paired_change, perplexity


class Uniform:
    """Every token is as likely as every other."""

    def logits(self, ids):
        return torch.zeros(*ids.shape, 8)


class Oracle:
    """Knows that each token is the one before plus one, with the odds given as logits 3 against 0."""

    def logits(self, ids):
        return 3.0 * torch.nn.functional.one_hot((ids + 1) % 8, 8).float()


def test_uniform_odds_give_the_vocabulary_size():
    result = perplexity(Uniform(), torch.randint(8, (3, 5)))
    assert result.value == pytest.approx(8)
    assert result.tokens == 12
    assert len(result.window_nll) == 3


def test_windows_are_kept_apart_and_the_next_token_is_judged():
    result = perplexity(Oracle(), torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]))
    hit = math.log(math.exp(3) + 7) - 3
    assert result.window_nll == pytest.approx((hit, hit + 3))
    assert result.value == pytest.approx(math.exp(hit + 1.5))


def test_half_precision_logits_are_judged_in_float32():
    logits = torch.tensor([[7.0, 7.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    nll = next_token_nll(logits, torch.tensor([0, 2]))
    assert nll.dtype == torch.float32
    assert float(nll) == pytest.approx(math.log(2 * math.exp(7) + 1), rel=1e-6)


def test_progress_counts_windows():
    events = []
    perplexity(Uniform(), torch.randint(8, (2, 5)), events.append)
    assert [(event.done, event.total, event.unit) for event in events] == [(1, 2, "windows"), (2, 2, "windows")]


def test_perplexity_of_known_values():
    assert Perplexity((0.0, 2.0), 10).value == pytest.approx(math.e)


def test_paired_change_of_a_constant_difference_is_certain():
    change = paired_change(Perplexity((1.1, 2.1, 3.1), 30), Perplexity((1.0, 2.0, 3.0), 30))
    assert change.relative == pytest.approx(math.expm1(0.1))
    assert (change.low, change.high) == pytest.approx((change.relative, change.relative))


def test_paired_change_that_windows_disagree_on_holds_zero():
    change = paired_change(Perplexity((1.1, 0.9) * 8, 160), Perplexity((1.0,) * 16, 160))
    assert change.relative == pytest.approx(0, abs=1e-12)
    assert change.low < -0.01
    assert change.high > 0.01


def test_paired_change_needs_the_same_windows():
    with pytest.raises(LimitError, match="2 windows against 1; use the same windows"):
        paired_change(Perplexity((1.0, 2.0), 20), Perplexity((1.0,), 10))
