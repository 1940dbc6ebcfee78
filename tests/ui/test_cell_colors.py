from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.evaluation.layer_diff import METRICS
from workbench.evaluation.palette import BROKEN, EXACT, MISSING, RATIO_MAP
from workbench.ui.cell_colors import (
    METRIC_VIEWS,
    MetricView,
    badness,
    color_cells,
    number_text,
    scale_gradient,
    value_text,
)

BEST, WORST = "#440154", "#fde725"  # the ends of viridis


def test_every_metric_has_a_view():
    assert list(METRIC_VIEWS) == list(METRICS)
    assert {name: view.label for name, view in METRIC_VIEWS.items()} == METRICS


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("relative_l2", [1e-4, 1e-3, 1e-2]),
        ("max_abs", [0.1, 1.0, 10.0]),
        ("cosine", [0.9999, 0.999, 0.99]),
        ("snr_db", [60.0, 40.0, 20.0]),
    ],
)
def test_the_worst_is_the_brightest(metric, values):
    cells = color_cells(np.array([values]), METRIC_VIEWS[metric])
    best, middle, worst = cells.colors[0]
    assert (best, worst) == (BEST, WORST)
    assert middle == "#21918c"
    assert (cells.best, cells.worst) == (values[0], values[-1])


@pytest.mark.parametrize(
    ("metric", "exact", "broken", "fine"),
    [
        ("relative_l2", 0.0, math.inf, 0.1),
        ("max_abs", 0.0, math.nan, 0.1),
        ("cosine", 1.0, math.nan, 0.9),
        ("snr_db", math.inf, -math.inf, 20.0),
    ],
)
def test_exact_and_broken_cells_stand_apart(metric, exact, broken, fine):
    cells = color_cells(np.array([exact, broken, math.nan, fine]), METRIC_VIEWS[metric])
    assert cells.colors[0] == EXACT
    assert list(cells.colors[1:3]) == [BROKEN, BROKEN]
    assert cells.best == cells.worst == fine


def test_nothing_but_exact_cells_have_no_scale():
    cells = color_cells(np.zeros((2, 2)), METRIC_VIEWS["relative_l2"])
    assert (cells.best, cells.worst) == (None, None)
    assert (cells.colors == EXACT).all()


def test_gradient_runs_from_best_to_worst():
    gradient = scale_gradient()
    assert gradient.index(BEST) < gradient.index(WORST)


def test_colours_around_a_middle():
    view = MetricView("ratio", "", colors=RATIO_MAP, center=1.0)
    cells = color_cells(np.array([0.5, 1.0, 4.0]), view)
    assert (cells.best, cells.worst) == (0.25, 4.0)
    assert (cells.least, cells.largest) == (0.5, 4.0)
    even = color_cells(np.array([1.0, 1.0]), view)
    assert even.colors[0] == cells.colors[1]
    assert color_cells(np.array([0.25, 4.0]), view).colors[1] == cells.colors[2]


def test_what_nobody_measured_has_no_colour():
    view = MetricView("magnitude", "", nan_is_missing=True)
    assert list(color_cells(np.array([np.nan, 1.0]), view).colors) == [MISSING, BEST]
    assert value_text(math.nan, view) == "not known"
    assert value_text(math.nan, METRIC_VIEWS["snr_db"]) == "not a number"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.000123456, "0.000123"), (3.14159, "3.14"), (999.4, "999"), (29440.0, "29,440"), (3e9, "3e+09"), (0.0, "0")],
)
def test_plain_numbers(value, text):
    assert value_text(value, MetricView("magnitude", "")) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2499.6, "2,500"),
        (999.4, "999"),
        (999.6, "1,000"),
        (-999.7, "-1,000"),
        (7.316, "7.32"),
        (0.00274, "0.00274"),
        (2.5e8, "2.5e+08"),
        (0, "0"),
    ],
)
def test_numbers_as_a_person_reads_them(value, text):
    assert number_text(value) == text


def test_numbers_with_a_format():
    assert value_text(0.01234, METRIC_VIEWS["relative_l2"]) == "0.0123"
    assert value_text(math.inf, METRIC_VIEWS["snr_db"]) == "infinite (exact)"
    assert value_text(math.inf, METRIC_VIEWS["relative_l2"]) == "inf"


def test_badness_is_largest_where_a_value_is_worst():
    for metric, values in (("relative_l2", [1e-4, 1e-2]), ("cosine", [0.999, 0.9]), ("snr_db", [60.0, 20.0])):
        low, high = badness(np.array(values), METRIC_VIEWS[metric])
        assert low < high
    assert badness(np.array([np.nan, 1.0]), METRIC_VIEWS["max_abs"]).tolist() == [np.inf, 1.0]
    assert np.isnan(badness(np.array([np.nan]), MetricView("x", "", nan_is_missing=True))).all()
