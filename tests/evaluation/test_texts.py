from __future__ import annotations

import hashlib

import pytest
import torch

from workbench.errors import LimitError
from workbench.evaluation.texts import offline_text, text_sha256, windows


class CountingTokenizer:
    """Every character is the token of its place in the text."""

    def encode(self, text, *, add_special_tokens, verbose):
        assert not add_special_tokens
        assert not verbose
        return list(range(len(text)))


def test_offline_text_is_python_s_reference_in_order():
    text = offline_text()
    assert text.index('The "assert" statement') < text.index('The "while" statement')
    assert len(text) > 300_000
    assert text == offline_text()


def test_text_sha256():
    assert text_sha256("ä") == hashlib.sha256("ä".encode()).hexdigest()


def test_windows_are_spread_and_do_not_overlap():
    ids = windows(CountingTokenizer(), "x" * 31, 3, 4)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]


def test_windows_may_fill_the_text():
    assert windows(CountingTokenizer(), "x" * 6, 2, 3).flatten().tolist() == list(range(6))


def test_a_text_too_short_is_refused():
    with pytest.raises(LimitError, match=r"text has 11 tokens, but 3 windows of 4 need 12; give a longer text"):
        windows(CountingTokenizer(), "x" * 11, 3, 4)


@pytest.mark.parametrize(("count", "length"), [(0, 4), (3, 1)])
def test_no_windows_are_refused(count, length):
    with pytest.raises(LimitError, match=f"{count} windows of {length} tokens; allowed: 1 window or more"):
        windows(CountingTokenizer(), "x" * 11, count, length)
