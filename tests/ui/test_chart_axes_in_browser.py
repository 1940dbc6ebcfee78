"""Widgets and figures write the same ticks: the rule stands in JavaScript and in Python, and both are asked here."""

from __future__ import annotations

import itertools
import json

import pytest
from chromium import NEEDS_CHROMIUM

from workbench.evaluation.axis_ticks import Tick, linear_ticks, log_ticks
from workbench.ui.scripts import joined

pytestmark = NEEDS_CHROMIUM
LIMITS = [(2.8, 5.2), (14, 110), (0.004, 9000), (0.01, 10_000), (1e-7, 1e3), (2e-5, 4e-5), (0.2, 30_000), (7e-4, 0.12)]
RANGES = [(0, 1), (-150, 120), (0, 29_000), (0, 2e-5), (-1.5, 1.5), (97, 103), (0, 3.2e6)]
ROOM = (2.5, 4, 6.2, 11)


@pytest.mark.parametrize(
    ("name", "python", "limits"), [("logTicks", log_ticks, LIMITS), ("linearTicks", linear_ticks, RANGES)]
)
def test_both_write_the_same_ticks(page, name, python, limits):
    asked = [(low, high, most) for (low, high), most in itertools.product(limits, ROOM)]
    script = f"(() => {{ {joined('chart_axes.js')}; return {json.dumps(asked)}.map((each) => {name}(...each)); }})()"
    written: list[list[Tick]] = page.evaluate(script)
    for each, ticks in zip(asked, written, strict=True):
        found = python(*each)
        assert [text for _, text in found] == [text for _, text in ticks], each
        assert [at for at, _ in found] == pytest.approx([at for at, _ in ticks])
