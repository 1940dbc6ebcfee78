"""A chart in matplotlib: legends beside the data, labels apart, ticks as the widget writes them."""

from __future__ import annotations

import numpy as np
import pytest
from figure_texts import faults, texts_in, tick_texts

from workbench.ui.chart import Axis, Bars, Chart, Line, Points, Rule, draw

ALPHAS = np.linspace(0, 1, 21)
ERRORS = 2.9 + 8 * (ALPHAS - 0.45) ** 2


def curve(*labels, **options):
    marks = [Line(ALPHAS, ERRORS * (1 + n / 9), label, "#0072B2", marker="o") for n, label in enumerate(labels)]
    marks += [Rule("x", at, f"{at:g} %") for at in (0.9, 0.93, 0.94, 0.97)]
    marks += [Rule("y", 3.3, "not smoothed: 3.3 %", "#999933")]
    axes = Axis("alpha", low=0.0, high=1.0), Axis("output error, relative L2 [%]", "log")
    return Chart("Error by alpha", *axes, marks, 450, 250, **options)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_legends_and_labels_cover_nothing(count):
    labels = [f"the line of the number {n}" for n in range(count)]
    figure = draw([curve(*labels), curve("short")], "Title")
    assert faults(figure) == []
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.bbox.y1 - 1
    assert legend.width <= axes.bbox.width + 1
    assert axes.title.get_window_extent().y0 >= legend.y1 - 1
    assert len({round(each.title.get_window_extent().y0) for each in figure.axes}) == 1  # titles of a row stand level


def test_a_legend_comes_on_top_of_the_height_of_its_chart():
    heights = [draw([curve(*labels)]).get_size_inches()[1] for labels in ([], ["a"], ["a", "b"], ["long " * 12] * 2)]
    assert heights[0] == pytest.approx(2.5)
    assert heights[0] < heights[1] == heights[2] < heights[3]


def test_percent_axes_have_plain_numbers():
    axes = draw([curve("a")]).axes[0]
    assert tick_texts(axes.yaxis) == ["3.0", "3.5", "4.0", "4.5", "5.0"]
    assert tick_texts(axes.xaxis)[0] == "0"


def test_bars_and_names_of_points():
    bars = Bars(range(9), [5, 4, 3, 5, 100, 90, 6, 5, 3], "per head", "#777777")
    points = Points([4, 5], [100, 90], "worst", "#000000", names=["layer 4", "layer 5"])
    chart = Chart("Errors", Axis("head", ticks=tuple((n, str(n)) for n in range(9))), Axis("error"), [bars, points])
    figure = draw([chart])
    assert faults(figure) == []
    assert set(texts_in(figure.axes[0])) == {"layer 4", "layer 5"}


def test_a_marker_at_a_limit_is_whole():
    marks = [Line([0, 1], [1.0, 0.0], marker="o"), Points([1], [1.0]), Line([0, 1], [0.0, 1.0])]
    axes = draw([Chart("t", Axis("x", low=0, high=1), Axis("y", low=0, high=1), marks)]).axes[0]
    markers, plain = axes.lines
    assert markers.get_clip_box().y1 > axes.bbox.y1 + 3
    assert axes.collections[0].get_clip_box().x1 > axes.bbox.x1 + 3
    assert plain.get_clip_box().y1 == pytest.approx(axes.bbox.y1)


def test_a_rule_at_no_place_has_no_name():
    axes = draw([Chart("t", Axis("x"), Axis("y"), [Line([0, 1], [0, 1]), Rule("y", np.nan, "nowhere")])]).axes[0]
    assert not axes.texts


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
@pytest.mark.parametrize(("width", "height"), [(80, 260), (400, 80), (60, 60)])
def test_odd_charts_are_drawn(width: int, height: int) -> None:
    marks = [Line([0, 1], [1, 2], " ", marker="o"), Points([0.5], [1.5], names=["p"]), Rule("x", 0.5, " ")]
    draw([Chart("t", Axis("x"), Axis("y"), marks, width=width, height=height)]).canvas.draw()
