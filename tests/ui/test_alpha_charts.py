"""The charts of a smoothing group hold what the search gave, and name it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from figure_texts import faults

from workbench.quantization.alpha_search import AlphaCurve
from workbench.quantization.smoothing_trial import GroupError
from workbench.ui.alpha_charts import (
    CURVE_MARK,
    GroupPicture,
    charts_of,
    curve_chart,
    error_text,
    input_chart,
    percent,
    weight_chart,
)
from workbench.ui.chart import Line, Points, Rule, draw


def group_error(alpha: float | None, error: float) -> GroupError:
    inputs, weights = torch.tensor([1.0, 8.0, 2.0, 0.0]), torch.tensor([0.5, 0.25, 1.0, 3.0])
    return GroupError(1, "down", alpha, error, error, inputs, weights)


@pytest.fixture
def picture() -> GroupPicture:
    curve = AlphaCurve(1, "down", (0.0, 0.5, 1.0), (0.09, 0.03, 0.06))
    return GroupPicture("layers.1.down", group_error(0.8, 0.04), group_error(None, 0.12), curve)


def test_the_curve_has_its_minimum_and_where_alpha_stands(picture: GroupPicture) -> None:
    chart = curve_chart(picture)
    curve, plain, best, now, here = chart.marks
    assert isinstance(curve, Line)
    assert isinstance(best, Points)
    assert isinstance(now, Points)
    assert isinstance(plain, Rule)
    assert isinstance(here, Rule)
    assert chart.marks[CURVE_MARK] is curve
    assert (list(curve.x), list(curve.y)) == ([0.0, 0.5, 1.0], [9.0, 3.0, 6.0])
    assert curve.texts[1] == "alpha 0.50: error 3 %\nclick to take it"
    assert (list(best.x), list(best.y), best.label) == ([0.5], [3.0], "minimum: alpha 0.50, 3 %")
    assert (list(now.x), list(now.y), now.label) == ([0.8], [4.0], "now: alpha 0.80, 4 %")
    assert (plain.axis, plain.at, plain.label) == ("y", 12.0, "not smoothed: 12 %")
    assert (here.axis, here.at) == ("x", 0.8)
    assert chart.title == "Output error of layers.1.down"
    assert "[%]" in chart.y.label


def test_while_the_curve_is_computed_the_rest_is_there() -> None:
    chart = curve_chart(GroupPicture("layers.1.down", group_error(0.8, 0.04), group_error(None, 0.12)))
    assert [type(mark) for mark in chart.marks] == [Rule, Points, Rule]
    assert "being computed" in chart.title


def test_a_group_that_is_not_smoothed_has_no_place_on_the_curve(picture: GroupPicture) -> None:
    plain = GroupPicture(picture.name, picture.plain, picture.plain, picture.curve)
    assert [type(mark) for mark in curve_chart(plain).marks] == [Line, Rule, Points]


def test_both_sides_are_sorted_and_their_spread_is_said(picture: GroupPicture) -> None:
    for chart, values, spread in (
        (input_chart(picture), [8.0, 2.0, 1.0, 0.0], "largest / median 8"),
        (weight_chart(picture), [3.0, 1.0, 0.5, 0.25], "largest / median 6"),
    ):
        before, after = chart.marks
        assert isinstance(before, Line)
        assert isinstance(after, Line)
        assert np.array_equal(before.y, values)
        assert np.array_equal(before.x, [1, 2, 3, 4])
        assert before.label == f"before: {spread}"
        assert after.label.startswith("smoothed: ")
        assert before.dash
        assert before.color != after.color


def test_they_are_drawn_in_places_without_widgets(picture: GroupPicture) -> None:
    figure = draw(charts_of(picture))
    assert len(figure.axes) == 3
    assert faults(figure) == []


@pytest.mark.parametrize(("share", "text"), [(0.012345, "1.23 %"), (0.1, "10 %"), (0.0, "0 %"), (1.234567, "123 %")])
def test_shares_have_three_digits(share: float, text: str) -> None:
    assert percent(share) == text


def test_an_error_in_words() -> None:
    assert error_text(0.02, (0.5, 0.01)) == "2 % (least 1 % at 0.50)"
    assert error_text(0.02, None) == "2 %"
    assert error_text(None, None) == "not measured"
    assert error_text(None, (0.5, 0.01)) == "not measured (least 1 % at 0.50)"


def test_where_no_alpha_helps_it_is_said(picture: GroupPicture) -> None:
    plain = curve_chart(dataclasses.replace(picture, plain=group_error(None, 0.02))).marks[1]
    assert isinstance(plain, Rule)
    assert plain.label == "not smoothed: 2 %, better than any alpha"
    assert error_text(0.04, (0.5, 0.03), 0.02) == "4 % (least 3 % at 0.50); not smoothing is better: 2 %"
    assert error_text(0.04, (0.5, 0.03), 0.03) == "4 % (least 3 % at 0.50)"
