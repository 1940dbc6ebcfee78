from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hand_made_ranges import TOKENS, make_ranges
from random_model import SMALL

from workbench.evaluation.palette import AFTER, BEFORE, RATIO_MAP
from workbench.evaluation.range_table import ratio_table
from workbench.ui.chart import Bars, Line, Rule
from workbench.ui.ranges_charts import RANGE_VIEWS, Seen, close_up, draw_all, range_map, ratio_view

HOT = "layers.1.mlp.down.input"


@pytest.fixture(scope="module")
def seen():
    return Seen.of("as calibrated", make_ranges(SMALL, spoil={HOT: 50.0}))


@pytest.fixture(scope="module")
def other():
    ranges = make_ranges(SMALL, scale=2.0)
    histograms = {name: counts for name, counts in ranges.histograms.items() if name != HOT}
    return Seen.of("after smoothing", dataclasses.replace(ranges, histograms=histograms))


def marks(chart, kind):
    return [mark for mark in chart.marks if isinstance(mark, kind)]


def test_the_map_has_a_row_per_site_and_a_column_per_layer(seen):
    cells = range_map(seen.table, "absmax", RANGE_VIEWS["absmax"])
    assert cells.columns == ["0", "1", "head"]
    assert cells.sites[0] == "qkv input"
    assert cells.sites[-1] == "LM head output"
    assert cells.groups == ["attention"] * 6 + ["MLP"] * 4 + ["LM head"] * 2
    row, column = cells.cell_of(HOT)
    assert (cells.sites[row], cells.columns[column]) == ("down input", "1")
    assert cells.values[row, column] == seen.table["absmax"].max()
    assert cells.cell_of("layers.9.key") == cells.cell_of("") == [-1, -1]
    texts = cells.texts()
    assert texts[row * 3 + column].startswith(f"{HOT}: largest magnitude 6")
    assert texts[2] == ""  # no head among the inputs of qkv


def test_every_view_is_a_column(seen):
    assert set(RANGE_VIEWS) <= set(seen.table)


def test_a_ratio_is_white_at_one(seen, other):
    view = ratio_view("absmax", ("before", "after"))
    assert (view.colors, view.center) == (RATIO_MAP, 1.0)
    assert view.label == "after / before, largest magnitude"
    assert view.meaning == "purple: smaller, white: 1, orange: larger"
    cells = range_map(ratio_table(seen.table, other.table), "absmax", view)
    assert cells.values[0, 0] == pytest.approx(2.0)


def test_close_up_of_one(seen):
    histogram, channels = close_up(HOT, [seen])
    (line,) = marks(histogram, Line)
    assert line.step
    assert line.color == BEFORE
    assert line.label == ""
    edges, counts = np.asarray(line.x), np.asarray(line.y)
    assert (counts[:-1] * np.diff(np.log2(edges))).sum() == pytest.approx(TOKENS * SMALL.intermediate_size)
    names = [rule.label for rule in marks(histogram, Rule)]
    assert names == ["99 %", "99.9 %", "99.99 %", "largest"]
    (line,) = marks(channels, Line)
    assert (np.diff(line.y) <= 0).all()
    assert line.texts[0].startswith("channel 3\nrank 1: ")
    assert "56 channels" in channels.title
    assert (histogram.x.scale, histogram.y.scale, channels.y.scale) == ("log", "log", "log")


def test_close_up_of_two(seen, other):
    histogram, channels = close_up(HOT, [seen, other])
    assert len(marks(histogram, Line)) == 1  # no histogram after smoothing
    assert [(line.label, line.color) for line in marks(channels, Line)] == [
        ("as calibrated", BEFORE),
        ("after smoothing", AFTER),
    ]
    assert "largest, after smoothing" in [rule.label for rule in marks(histogram, Rule)]


def test_two_histograms_are_shares(seen):
    more = Seen.of("more", make_ranges(SMALL))
    histogram, _ = close_up("lm_head.input", [seen, more])
    for line in marks(histogram, Line):
        assert (np.asarray(line.y)[:-1] * np.diff(np.log2(line.x))).sum() == pytest.approx(1.0)
    assert "share" in histogram.y.label


def test_keys_and_values_per_head(seen, other):
    _, heads = close_up("layers.0.key", [seen])
    assert [bars.label for bars in marks(heads, Bars)] == ["K", "V"]
    assert list(marks(heads, Bars)[0].y) == pytest.approx(seen.ranges.keys[0].tolist())
    assert "K and V" in heads.title
    _, heads = close_up("layers.0.value", [seen, other])
    assert [bars.label for bars in marks(heads, Bars)] == ["as calibrated", "after smoothing"]
    assert list(marks(heads, Bars)[1].y) == pytest.approx(other.ranges.values[0].tolist())
    assert heads.title.startswith("V ")


def test_a_static_picture_has_the_map_and_the_close_up(seen, other):
    view = ratio_view("absmax", ("before", "after"))
    cells = range_map(ratio_table(seen.table, other.table), "absmax", view)
    figure = draw_all(cells, HOT, [seen, other], "Why V is larger.")
    above, bar, histogram, channels = figure.axes
    assert above.images[0].get_array().shape[:2] == (12, 3)
    assert "after / before" in above.get_title()
    assert above.get_xlabel().endswith("Why V is larger.")
    assert "orange: larger" in bar.get_ylabel()
    assert histogram.get_xlabel() == "magnitude"
    assert channels.get_ylabel() == "largest magnitude"
