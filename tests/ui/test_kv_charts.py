"""What the charts of the KV cache hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from figure_texts import faults

from workbench.bench.kv_book import KVBook, kv_frame
from workbench.progress import silent
from workbench.quantization.kv_error import DEFAULT_PERCENTILES
from workbench.recipe import Int8KVCache
from workbench.ui.chart import Bars, Line, Points, Rule, draw
from workbench.ui.kv_charts import (
    charts_of,
    curve_chart,
    depth_chart,
    heads_chart,
    magnitudes_chart,
    maxima_chart,
    percentile_place,
)
from workbench.ui.kv_wanted import Wanted

HOW = Int8KVCache("per_head", 99.9)


@pytest.fixture(scope="module")
def wanted(random_kv_study):
    wanted = Wanted(KVBook(random_kv_study), HOW, None, 1)
    wanted.compute_rest(silent)
    return wanted


@pytest.fixture(scope="module")
def picture(wanted):
    return wanted.picture()


@pytest.fixture(scope="module")
def frame(wanted, random_kv_study):
    return kv_frame(random_kv_study.ranges, HOW, None, wanted.book)


def of_kind(chart, kind):
    return [mark for mark in chart.marks if isinstance(mark, kind)]


def test_both_granularities_over_depth(frame):
    chart = depth_chart(frame, HOW, 1)
    heads, tensor = of_kind(chart, Line)
    assert (heads.dash, tensor.dash) == (False, True)
    assert (heads.label, tensor.label) == ("per head (chosen)", "per tensor")
    np.testing.assert_allclose(heads.y, 100 * frame["error_per_head"])
    (point,) = of_kind(chart, Points)
    assert point.y == [100 * frame["error_per_head"][1]]
    assert "99.9 %" in chart.title


def test_layers_that_are_not_known_are_gaps(frame):
    unknown = frame.assign(error_per_head=[np.nan, np.nan])
    chart = depth_chart(unknown, HOW, 1)
    assert of_kind(chart, Points) == []
    assert of_kind(chart, Line)[0].texts[0].startswith("layer 0, per head: not known yet")


def test_the_curve_marks_its_minimum_and_the_choice(picture):
    chart = curve_chart(picture)
    assert [line.label for line in of_kind(chart, Line)] == ["per head", "per tensor"]
    curve = picture.curves["per_head"]
    best, chosen = of_kind(chart, Points)
    assert best.y == [100 * curve.best[1]] == [min(100 * error.relative_l2 for error in curve.errors)]
    assert chosen.x == [percentile_place(99.9)]
    assert chosen.y == [100 * picture.chosen.relative_l2]
    assert [text for _, text in chart.x.ticks] == [f"{each:g}" for each in DEFAULT_PERCENTILES]
    assert "being computed" not in chart.title


def test_a_curve_on_its_way_has_no_minimum(picture):
    bare = dataclasses.replace(picture, curves={})
    chart = curve_chart(bare)
    assert "being computed" in chart.title
    assert [point.label for point in of_kind(chart, Points)] == [f"chosen: {100 * bare.chosen.relative_l2:.3g} %"]


def test_percentiles_stand_in_order():
    places = [percentile_place(each) for each in (50, 98, 99, 99.9, 99.99, 99.999, 99.9999, 100)]
    assert places == sorted(places)
    assert percentile_place(99.9) - percentile_place(99) == pytest.approx(1)
    assert places[-1] > places[-2]


def test_bars_are_the_choice_and_points_the_other(picture):
    chart = heads_chart(picture, 0)
    (bars,), (points,) = of_kind(chart, Bars), of_kind(chart, Points)
    np.testing.assert_allclose(bars.y, 100 * picture.now["per_head"].by_head)
    np.testing.assert_allclose(points.y, 100 * picture.now["per_tensor"].by_head)
    assert len(set(bars.colors)) == 2
    assert len(set(of_kind(heads_chart(picture, None), Bars)[0].colors)) == 1


def test_clips_stand_where_the_scales_end(picture):
    error = picture.chosen
    rules = of_kind(magnitudes_chart(picture, 1), Rule)
    assert [rule.label for rule in rules] == ["K clip", "V clip"]
    assert [rule.at for rule in rules] == [float(error.key_limit[1]), float(error.value_limit[1])]
    every = of_kind(magnitudes_chart(picture, None), Rule)
    assert [rule.label for rule in every] == ["K clip, least", "K clip, largest", "V clip, least", "V clip, largest"]
    assert [every[0].at, every[1].at] == [float(error.key_limit.min()), float(error.key_limit.max())]


def test_magnitudes_that_are_stored_as_zero_are_left_out(picture):
    limit = float(max(picture.chosen.key_limit.max(), picture.chosen.value_limit.max()))
    for line in of_kind(magnitudes_chart(picture, None), Line):
        assert limit / 2**13 < line.x[0]
        assert len(line.x) == len(line.y)


def test_they_can_be_drawn(picture, frame, random_kv_study):
    for head in (None, 0):
        figure = draw(charts_of(picture, frame, head))
        assert len(figure.axes) == 4
        assert faults(figure) == []
    maxima = draw([maxima_chart(random_kv_study.ranges)])
    assert len(maxima.axes) == 1
    assert faults(maxima) == []
