"""The parts of a trial that a search does not show: how errors are summed, and how spreads are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.model.weights import DenseWeight
from workbench.quantization.smoothing_trial import GroupError, SmoothingGroup, relative_errors


def test_errors_as_stated() -> None:
    generator = np.random.default_rng(0)
    exact = generator.normal(size=(5, 7)).astype(np.float32)
    exact[2] *= 1000
    found = exact + generator.normal(size=(5, 7)).astype(np.float32) * 0.1
    whole, token = relative_errors(torch.from_numpy(found), torch.from_numpy(exact))
    far = (found - exact).astype(np.float64)
    assert whole == pytest.approx(np.linalg.norm(far) / np.linalg.norm(exact.astype(np.float64)), rel=1e-9)
    rows = np.linalg.norm(far, axis=1) / np.linalg.norm(exact.astype(np.float64), axis=1)
    assert token == pytest.approx(np.sqrt((rows**2).mean()), rel=1e-9)
    # The large row hides the others in the one, not in the other.
    assert whole < 0.01 < token


def test_zeros_found_where_zeros_are_is_no_error() -> None:
    assert relative_errors(torch.zeros(2, 3), torch.zeros(2, 3)) == (0.0, 0.0)


def test_spreads() -> None:
    maxima = torch.tensor([1.0, 2.0, 8.0])
    found = GroupError(0, "qkv", None, 0.1, 0.1, maxima, torch.tensor([3.0, 3.0, 3.0]))
    assert (found.input_spread, found.weight_spread) == (4.0, 1.0)
    dead = GroupError(0, "qkv", None, 0.1, 0.1, torch.tensor([0.0, 0.0, 8.0]), torch.zeros(3))
    assert (dead.input_spread, dead.weight_spread) == (float("inf"), 1.0)


def test_a_groups_bytes() -> None:
    weight = DenseWeight(torch.zeros(4, 3, dtype=torch.float16), torch.zeros(4, dtype=torch.float16))
    group = SmoothingGroup(0, "o", "name", weight, [4], torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 4))
    assert group.nbytes == 2 * 12 + 2 * 4 + 4 * 3 + 4 * 6 + 4 * 8
