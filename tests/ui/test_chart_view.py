"""The chart widget without a browser; tests/ui/test_widgets_in_browser.py draws it in one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import traitlets

from workbench.ui.chart import Axis, Bars, Chart, Line, Points, Rule
from workbench.ui.chart_view import ChartView, chart_spec


@pytest.fixture
def chart():
    marks = [
        Line([1, 2], [np.nan, np.inf], "a", texts=["p", "q"]),
        Points([1], [2], colors="#0072B2", names=["n"]),
        Bars([1, 2], [3, 4], colors=["#0072B2", "#E69F00"]),
        Rule("y", float("nan"), "nowhere"),
    ]
    return Chart("title", Axis("x", low=float("nan")), Axis("y", "log", high=5), marks, width=300)


def test_arrays_travel_as_bytes_and_nothing_else_is_not_json(chart):
    spec = chart_spec(chart)
    x, y = (np.frombuffer(spec["marks"][0][axis]) for axis in "xy")
    assert list(x) == [1, 2]
    assert np.isnan(y[0])
    assert y[1] == np.inf
    json.dumps(spec, allow_nan=False, default=lambda raw: raw.hex())
    assert (spec["x"]["low"], spec["y"]["high"], spec["marks"][3]["at"]) == (None, 5.0, None)
    assert [mark["kind"] for mark in spec["marks"]] == ["line", "points", "bars", "rule"]
    assert spec["marks"][1]["colors"] == ["#0072B2"]
    assert spec["marks"][2]["colors"] == ["#0072B2", "#E69F00"]


def test_nothing_is_an_empty_description():
    view = ChartView()
    assert view.spec == {}
    assert view.chart is None
    assert "nothing" in repr(view)


def test_another_chart_is_one_message_and_chooses_nothing(chart):
    view = ChartView(Chart("first", Axis("x"), Axis("y"), [Points([1], [1])]))
    view.selected = [0, 0]
    sent = []
    view.observe(lambda _: sent.append(dict(view.spec)["title"]), "selected")
    view.chart = chart
    assert view.chart is chart
    assert view.spec["title"] == "title"
    assert view.selected == [-1, -1]
    assert sent == ["title"]  # whoever hears of the choice sees the new chart
    assert view.layout.width == "300px"


def test_a_choice_is_a_mark_and_a_point(chart):
    view = ChartView(chart, clickable=False)
    assert not view.clickable
    view.selected = [1, 0]
    with pytest.raises(traitlets.TraitError):
        view.selected = [1]


def test_source_and_style_are_found():
    view = ChartView()
    assert "function linearTicks" in view._esm
    assert "export default" in view._esm
    assert ".wb-chart" in view._css
