"""A session whose logits go to a file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.random_model import SMALL
from workbench.cli.command import UsageError
from workbench.cli.recorded_logits import RecordedSession

VOCAB = 6


class Dealt:
    """A session that deals logits from a list."""

    config, limits, backend = dataclasses.replace(SMALL, vocab_size=VOCAB), SimpleNamespace(), "torch"

    def __init__(self, steps: torch.Tensor) -> None:
        self.steps: Iterator[torch.Tensor] = iter(steps)

    def prefill(self, prompts: Any) -> torch.Tensor:  # noqa: ARG002
        return next(self.steps)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return next(self.steps)


def test_rows_of_steps_become_one_table(tmp_path: Path) -> None:
    steps = torch.randn(4, 2, VOCAB, dtype=torch.float64)
    session = RecordedSession(Dealt(steps), tmp_path, 2, 4)  # type: ignore[arg-type]
    with closing(session):
        assert torch.equal(session.prefill([[1], [2]]), steps[0])
        for step in steps[1:]:
            assert torch.equal(session.decode(torch.tensor([1, 1])), step)
        session.write_npy(tmp_path / "a.npy", [1, 3])
    table = np.load(tmp_path / "a.npy")
    assert (table.dtype, table.shape) == (np.float32, (2, 3, VOCAB))
    expected = steps.float().numpy().swapaxes(0, 1)[:, :3]
    np.testing.assert_array_equal(table[0, :1], expected[0, :1])
    np.testing.assert_array_equal(table[1], expected[1])
    assert np.isnan(table[0, 1:]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_second_prefill_begins_anew_and_no_tokens_are_an_empty_table(tmp_path: Path) -> None:
    steps = torch.randn(2, 1, VOCAB)
    session = RecordedSession(Dealt(steps), tmp_path, 1, 1)  # type: ignore[arg-type]
    with closing(session):
        session.prefill([[1]])
        session.prefill([[1]])
        session.write_npy(tmp_path / "a.npy", [1])
        session.write_npy(tmp_path / "none.npy", [0])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[0], steps[1].numpy())
    assert np.load(tmp_path / "none.npy").shape == (1, 0, VOCAB)


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 3 * 5 * VOCAB * 4 - 1))
    with pytest.raises(UsageError, match=r"may need 720 B in .* which has 719 B free; lower --max_output_len"):
        RecordedSession(Dealt(torch.zeros(0)), tmp_path, 3, 5)  # type: ignore[arg-type]
