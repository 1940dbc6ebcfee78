from __future__ import annotations

import pytest

from workbench.evaluation.palette import AFTER, BEFORE, KV, PRECISION, SITE
from workbench.evaluation.tap_error import DIVERGENCE


def test_every_precision_has_a_colour_of_its_own():
    assert set(PRECISION) == set(DIVERGENCE)
    assert len(set(PRECISION.values())) == len(PRECISION)


@pytest.mark.parametrize("table", [SITE, KV])
def test_neither_colour_nor_marker_carries_the_meaning_alone(table):
    for each in zip(*table.values(), strict=True):
        assert len(set(each)) == len(table)


def test_before_is_not_after():
    assert BEFORE != AFTER


@pytest.mark.parametrize("table", [SITE, KV])
def test_no_site_has_the_colour_of_a_precision(table):
    assert not {color for color, _ in table.values()} & set(PRECISION.values())
