from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from workbench.ui.chart import Axis, Bars, Chart, Line, Points, Rule, draw, kept_points, thin_out, to_png


def test_a_line_that_is_thinned_out_keeps_its_extremes_and_ends():
    x = np.arange(10_000.0)
    y = np.sin(x / 700)
    y[4321], y[7654] = 9.0, -9.0
    thin_x, thin_y = thin_out(x, y, 200)
    assert 100 < len(thin_x) <= 200
    assert (np.diff(thin_x) > 0).all()
    assert (thin_x[0], thin_x[-1]) == (0, 9999)
    assert {4321, 7654} <= set(thin_x)
    assert (thin_y == y[thin_x.astype(int)]).all()


def test_a_short_line_stays_as_it_is():
    x, y = thin_out([1, 2, 3], [4, np.nan, 6], 4)
    assert list(x) == [1, 2, 3]
    assert np.isnan(y[1])


def test_values_that_are_not_finite_never_hide_an_extreme():
    y = np.full(1000, np.nan)
    y[500] = 3.0
    assert 500 in kept_points(y, 20)
    assert len(kept_points(np.full(1000, np.inf), 20)) <= 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: Line([1, 2], [1]),
        lambda: Line([1, 2], [1, 2], texts=["a"]),
        lambda: Points([1, 2], [1, 2], colors=["#000000"]),
        lambda: Points([1, 2], [1, 2], names=["a", "b", "c"]),
        lambda: Bars([[1, 2]], [[1, 2]]),
    ],
)
def test_what_comes_once_per_point_must_come_as_often(make):
    with pytest.raises(ValueError, match=r"shape|texts or colors"):
        make()


def test_importing_it_needs_no_matplotlib():
    code = "import workbench.ui.chart, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_mark_is_drawn_in_matplotlib():
    marks = [
        Line([1, 2, 3], [1.0, np.nan, 3.0], "line", "#0072B2", dash=True, marker="s"),
        Line([1, 2, 4], [5, 0, 0], "steps", "#D55E00", step=True, fill=True),
        Points([1, 2], [2, 1], "points", ["#0072B2", ""], names=["first", ""]),
        Bars([1, 2], [3, 4], "bars", "#E69F00", width=0.5),
        Rule("x", 2.5, "now"),
        Rule("y", 3.5, "limit", "#D55E00", dash=False),
    ]
    ticks = ((1.0, "one"), (3.0, "three"))
    chart = Chart("Everything", Axis("x", low=0.5, high=4.5, ticks=ticks), Axis("y", high=9.0), marks, diagonal=True)
    figure = draw([chart, chart], "Two")
    axes = figure.axes[0]
    assert figure.get_suptitle() == "Two"
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Everything", "x", "y")
    assert axes.get_xlim() == (0.5, 4.5)
    assert axes.get_ylim()[1] == 9.0
    assert [text.get_text() for text in axes.get_xticklabels()] == ["one", "three"]
    assert {"line", "steps", "points", "bars"} == {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"first", "now", "limit"} <= {text.get_text().strip() for text in axes.texts}
    assert to_png(figure).startswith(b"\x89PNG")
    assert figure._repr_png_() == to_png(figure)  # a notebook's picture of it


def test_limits_come_from_the_marks_where_none_are_given():
    axes = draw([Chart("t", Axis("x"), Axis("y", "log"), [Line([10, 20], [1e-3, 10])])]).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_xlim()[0] < 10 < 20 < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < 1e-3 < 10 < axes.get_ylim()[1]


def test_charts_that_do_not_fit_beside_each_other_stand_below():
    chart = Chart("t", Axis("x"), Axis("y"), width=520, height=260)
    assert draw([chart, chart]).get_size_inches() == pytest.approx([10.4, 2.6])
    assert draw([chart] * 3).get_size_inches() == pytest.approx([10.4, 5.2])
    draw([])
