"""The static map of ranges: its colour bar, its title, its note."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from figure_texts import faults, tick_texts
from hand_made_ranges import make_ranges
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from random_model import SMALL

from workbench.evaluation.range_table import ratio_table
from workbench.ui.cell_colors import color_cells
from workbench.ui.ranges_charts import RANGE_VIEWS, Seen, draw_all, range_map, ratio_view
from workbench.ui.ranges_figure import draw_map

HOT = "layers.1.mlp.down.input"


@pytest.fixture(scope="module")
def seen():
    return Seen.of("as calibrated", make_ranges(SMALL, spoil={HOT: 50.0}))


@pytest.fixture(scope="module")
def after():
    return Seen.of("after smoothing", make_ranges(SMALL, scale=2.0))


@pytest.fixture(scope="module")
def ratios(seen, after):
    return range_map(ratio_table(seen.table, after.table), "absmax", ratio_view("absmax", ("before", "after")))


def test_the_bar_of_a_ratio_has_one_in_the_middle(ratios):
    figure = Figure(figsize=(9, 4), layout="constrained")
    draw_map(figure, ratios, HOT, "V becomes larger.")
    assert faults(figure) == []
    axes, bar = figure.axes
    low, high = bar.get_ylim()
    assert low * high == pytest.approx(1.0)
    assert "1" in tick_texts(bar.yaxis)
    assert bar.get_ylabel() == "purple: smaller, white: 1, orange: larger"
    assert axes.get_xlabel() == "layer\nV becomes larger."


def test_the_title_has_the_reach_of_the_values_not_of_the_colours(ratios):
    figure = Figure(layout="constrained")
    draw_map(figure, ratios, "")
    least, largest = np.nanmin(ratios.values), np.nanmax(ratios.values)
    assert largest < 1 / least  # the colours reach as far above 1 as below
    assert figure.axes[0].get_title() == f"after / before, largest magnitude: {least:.3g} to {largest:.3g}"
    assert not figure.axes[0].lines  # no cell is framed


def test_the_bar_of_magnitudes_is_named_and_ends_with_them(seen):
    figure = Figure(figsize=(9, 4), layout="constrained")
    cells = range_map(seen.table, "absmax", RANGE_VIEWS["absmax"])
    draw_map(figure, cells, HOT)
    axes, bar = figure.axes
    assert bar.get_ylabel() == "largest magnitude"
    assert bar.get_ylim() == pytest.approx((np.nanmin(cells.values), np.nanmax(cells.values)))
    assert axes.get_xlabel() == "layer"
    assert "grey" not in axes.get_title()


def test_values_that_are_all_the_same_or_none(seen):
    cells = range_map(seen.table, "absmax", RANGE_VIEWS["absmax"])
    same = dataclasses.replace(cells, values=np.where(np.isnan(cells.values), np.nan, 3.0))
    figure = Figure(layout="constrained")
    draw_map(figure, same, HOT)
    assert figure.axes[0].get_title() == "largest magnitude: 3 to 3"
    (bar,) = (each for each in figure.axes[1].collections if each.get_array() is not None)
    drawn = color_cells(same.values, same.view).colors[~np.isnan(same.values)]
    assert {to_hex(bar.cmap(bar.norm(3.0)))} == set(drawn)
    figure = Figure(layout="constrained")
    draw_map(figure, dataclasses.replace(cells, values=np.zeros_like(cells.values)), HOT)
    assert len(figure.axes) == 1  # nothing for a colour bar to span
    assert figure.axes[0].get_title() == "largest magnitude; grey: 0"


@pytest.mark.parametrize("place", [HOT, "layers.0.key", "lm_head.output"])
@pytest.mark.parametrize("both", [False, True])
def test_no_text_of_the_whole_figure_covers_another(seen, after, ratios, place, both):
    cells = ratios if both else range_map(seen.table, "outlier_ratio", RANGE_VIEWS["outlier_ratio"])
    shown = [seen, after] if both else [seen]
    assert faults(draw_all(cells, place, shown, "A note as long as a sentence." if both else "")) == []
