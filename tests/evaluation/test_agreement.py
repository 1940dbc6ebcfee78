from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from workbench.evaluation.agreement import GATE_RELATIVE_L2_P95, Agreement, AgreementMeter
from workbench.evaluation.tap_error import DIVERGENCE


def _agreement(reference, candidate, ids):
    meter = AgreementMeter()
    meter.add(reference, candidate, ids)
    return meter.result()


def test_equal_logits_agree():
    logits = torch.randn(100, 11, generator=torch.Generator().manual_seed(0))
    result = _agreement(logits, logits.clone(), torch.randint(11, (100,)))
    assert result.kl == pytest.approx(0, abs=1e-12)
    assert result.top1 == 1
    assert result.cosine_p5 == pytest.approx(1)
    assert result.relative_l2_p95 == 0
    assert result.reference_perplexity == result.candidate_perplexity
    assert result.positions == 100
    assert result.same_model("float32")


def test_divergence_of_known_odds_has_the_reference_first():
    reference, candidate = torch.tensor([[0.8, 0.2]] * 3).log(), torch.tensor([[0.4, 0.6]] * 3).log()
    result = _agreement(reference, candidate, torch.tensor([0, 0, 1]))
    assert result.kl == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(1 / 3), rel=1e-5)
    assert result.top1 == 0
    assert result.reference_perplexity == pytest.approx((0.8 * 0.2) ** -0.5, rel=1e-5)
    assert result.candidate_perplexity == pytest.approx((0.4 * 0.6) ** -0.5, rel=1e-5)
    assert not result.same_model("float32")


def test_windows_add_up():
    meter = AgreementMeter()
    logits = torch.eye(4)
    meter.add(logits, logits, torch.arange(4))
    meter.add(logits, logits.flip(0), torch.arange(4))
    assert meter.result().top1 == 0.5
    assert meter.result().positions == 8


@pytest.mark.parametrize(
    "change", [{"cosine_p5": 0.98}, {"relative_l2_p95": 0.06}, {"top1": 0.89}, {"top1": math.nan}], ids=str
)
def test_each_part_of_the_gate_can_fail(change):
    good = Agreement(0.0, 0.9, 0.99, 0.05, 10.0, 10.0, 5)
    assert good.same_model("float32")
    assert not replace(good, **change).same_model("float32")


@pytest.mark.parametrize("precision", DIVERGENCE)
def test_every_precision_has_a_limit_of_its_own(precision):
    limit = GATE_RELATIVE_L2_P95[precision]
    good = Agreement(0.0, 0.9, 0.99, limit, 10.0, 10.0, 5)
    assert good.same_model(precision)
    assert not replace(good, relative_l2_p95=limit * 1.01).same_model(precision)
