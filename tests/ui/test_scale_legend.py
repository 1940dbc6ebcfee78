from __future__ import annotations

import dataclasses

import numpy as np

from workbench.evaluation.palette import RATIO_MAP
from workbench.ui.cell_colors import METRIC_VIEWS, MetricView, color_cells, scale_gradient
from workbench.ui.scale_legend import ScaleLegend

PLAIN = MetricView("largest <magnitude>", "", nan_is_missing=True)


def shown(values, view, marks=None):
    legend = ScaleLegend()
    legend.show(color_cells(np.array(values), view), view, marks)
    return legend.value


def test_ends_and_name():
    text = shown([0.5, 29440.0], PLAIN)
    assert "largest &lt;magnitude&gt;" in text
    assert "<span>0.5</span>" in text
    assert "<span>29,440</span>" in text
    assert scale_gradient() in text


def test_nothing_to_span():
    text = shown([np.nan, np.nan], PLAIN)
    assert "no cell has a value on this scale" in text
    assert "gradient" not in text


def test_cells_off_the_scale_are_explained():
    assert "exact" in shown([0.0, 0.1], METRIC_VIEWS["relative_l2"])
    assert "> 0<" in shown([0.0, 0.1], PLAIN)
    assert "exact" not in shown([0.2, 0.1], METRIC_VIEWS["relative_l2"])


def test_the_middle_of_a_ratio_is_named():
    view = MetricView("after / before", "", colors=RATIO_MAP, center=1.0)
    text = shown([0.5, 1.0], view)
    assert "(white: 1)" in text
    assert "values from 0.5 to 1<" in text  # the colours reach to 2
    assert "(purple: smaller)" in shown([0.5, 1.0], dataclasses.replace(view, meaning="purple: smaller"))
    assert "values from" not in shown([0.5, 1.0], PLAIN)
    assert "<span>0.5</span>" in text
    assert "<span>2</span>" in text
    assert scale_gradient(RATIO_MAP) in text


def test_a_note_comes_last():
    legend = ScaleLegend()
    legend.show(color_cells(np.array([1.0, 2.0]), PLAIN), PLAIN, note="V < before")
    assert legend.value.endswith("<span>V &lt; before</span></div>")


def test_marks_are_explained():
    text = shown([1.0], PLAIN, {"dot": "first <divergence>", "cross": "locked"})
    assert "&#9679; first &lt;divergence&gt;" in text
    assert "&#215; locked" in text
