"""Sizes and counts as people read them."""

from __future__ import annotations

import pytest

from workbench.cli.amounts import count, size


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2 * 10**9, "2.0 GB"),
        (10**13, "10000.0 GB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (12_345, "12,345"), (134_515_008, "135 million"), (7_300_000_000, "7.3 billion")]
)
def test_counts(number: int, text: str) -> None:
    assert count(number) == text
