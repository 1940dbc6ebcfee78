from __future__ import annotations

import math

import pytest
import torch

from workbench.evaluation import tap_error
from workbench.evaluation.tap_error import DIVERGENCE, SAMPLES_PER_TAP, TapError, diverges


def _row(reference, candidate):
    error = TapError("tap", 1)
    error.add(torch.tensor(reference), torch.tensor(candidate))
    return error.row()


def test_measures_of_a_known_pair():
    row = _row([3.0, 4.0], [3.0, 3.0])
    assert row.relative_l2 == pytest.approx(1 / 5)
    assert row.cosine == pytest.approx(21 / (5 * math.sqrt(18)))
    assert row.snr_db == pytest.approx(20 * math.log10(5))
    assert row.max_abs == 1
    assert row.reference_rms == pytest.approx(5 / math.sqrt(2))


def test_windows_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 100, generator=generator)
    whole, parts = TapError("tap", 1), TapError("tap", 4)
    whole.add(x, y)
    for reference, candidate in zip(x, y, strict=True):
        parts.add(reference, candidate)
    assert parts.row().relative_l2 == pytest.approx(whole.row().relative_l2, rel=1e-6)
    assert parts.row().cosine == pytest.approx(whole.row().cosine, rel=1e-6)
    assert parts.row().max_abs == whole.row().max_abs


def test_an_exact_tap():
    row = _row([1.0, -2.0], [1.0, -2.0])
    assert (row.relative_l2, row.snr_db, row.max_abs) == (0, math.inf, 0)
    assert row.cosine == pytest.approx(1)


def test_zeros():
    both = _row([0.0, 0.0], [0.0, 0.0])
    assert (both.relative_l2, both.cosine, both.snr_db) == (0, 1, math.inf)
    one = _row([0.0, 0.0], [0.0, 1.0])
    assert (one.relative_l2, one.cosine, one.snr_db) == (math.inf, 0, -math.inf)


@pytest.mark.parametrize("side", [0, 1])
def test_nan_shows_and_diverges(side):
    pair = [[1.0, 2.0], [1.0, 2.0]]
    pair[side] = [1.0, math.nan]
    row = _row(*pair)
    assert math.isnan(row.relative_l2)
    assert math.isnan(row.cosine)
    assert math.isnan(row.snr_db)
    assert math.isnan(row.max_abs)
    assert diverges(row.relative_l2, "bfloat16")


def test_float64_is_not_rounded_to_float32():
    error = TapError("tap", 1)
    error.add(torch.ones(2, dtype=torch.float64), torch.full((2,), 1 + 1e-12, dtype=torch.float64))
    assert error.row().relative_l2 == pytest.approx(1e-12, rel=1e-3)


def test_samples_are_pairs_bounded_and_the_same_every_time():
    x = torch.arange(20_000.0)
    drawn = []
    for _ in range(2):
        error = TapError("tap", 3)
        for _ in range(3):
            error.add(x, x + 1)
        drawn.append(error.samples())
    reference, candidate = drawn[0]
    assert len(reference) == SAMPLES_PER_TAP
    assert torch.equal(candidate, reference + 1)
    assert torch.equal(reference, drawn[1][0])


def test_limits_are_in_the_order_of_the_precisions():
    assert list(DIVERGENCE.values()) == sorted(DIVERGENCE.values())
    assert diverges(DIVERGENCE["float16"] * 1.01, "float16")
    assert not diverges(DIVERGENCE["float16"], "float16")


def test_shapes_must_be_the_same():
    with pytest.raises(ValueError, match=r"shape \[2\] against one of \[3\]"):
        TapError("tap", 1).add(torch.ones(2), torch.ones(3))


def test_every_token_has_an_error_of_its_own():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 6, generator=generator)
    y = x.clone()
    y[0, 2] *= 1.5
    error = TapError("tap", 2)
    error.add(x, y)
    error.add(x, x)
    assert torch.allclose(error.tokens(), torch.tensor([[0, 0, 0.5, 0], [0, 0, 0, 0]]))
    heads = TapError("heads", 1)
    heads.add(x.view(1, 4, 3, 2).transpose(1, 2), y.view(1, 4, 3, 2).transpose(1, 2))
    assert torch.allclose(heads.tokens(), torch.tensor([[0, 0, 0.5, 0]]))


def test_a_token_of_zeros_is_exact_or_as_wrong_as_can_be():
    reference, candidate = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    candidate[0, 1], candidate[0, 2] = 1, math.nan
    error = TapError("tap", 1)
    error.add(reference, candidate)
    exact, wrong, broken = error.tokens()[0].tolist()
    assert (exact, wrong) == (0, math.inf)
    assert math.isnan(broken)


def test_only_so_many_tokens_are_kept(monkeypatch):
    monkeypatch.setattr(tap_error, "TOKENS_PER_TAP", 10)
    error = TapError("tap", 4)
    for _ in range(4):
        error.add(torch.ones(1, 4, 2), torch.ones(1, 4, 2))
    assert error.tokens().shape == (2, 4)
    long = TapError("tap", 1)
    long.add(torch.ones(1, 11, 2), torch.ones(1, 11, 2))
    assert long.tokens().shape == (1, 11)


def test_values_without_tokens_have_none():
    error = TapError("tap", 1)
    error.add(torch.ones(5), torch.ones(5))
    assert error.tokens().shape == (0, 0)
