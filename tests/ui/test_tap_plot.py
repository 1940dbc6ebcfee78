from __future__ import annotations

import math

import pytest

from workbench.errors import WorkbenchError
from workbench.ui.tap_plot import plot_tap, to_png


def test_two_plots_with_names_and_units(make_diff):
    figure = plot_tap(make_diff(), "layers.1.mlp.down")
    scatter, histogram = figure.axes
    assert "layers.1.mlp.down: 50 values" in figure.get_suptitle()
    assert scatter.get_xlabel() == "Hugging Face"
    assert scatter.get_ylabel() == "ours (float16)"
    assert histogram.get_xlabel() == "error (ours minus reference)"
    assert len(scatter.collections[0].get_offsets()) == 50
    assert sum(patch.get_height() for patch in histogram.patches) == 50


def test_values_that_are_not_finite_are_counted(make_diff):
    diff = make_diff(spoil={"logits": math.nan})
    figure = plot_tap(diff, "logits")
    assert "50 not finite" in figure.axes[0].get_title()
    to_png(figure)


def test_png(make_diff):
    assert to_png(plot_tap(make_diff(), "embedding")).startswith(b"\x89PNG")


def test_unknown_tap(make_diff):
    with pytest.raises(WorkbenchError, match=r"'layers\.7\.mlp\.down' was not compared"):
        plot_tap(make_diff(), "layers.7.mlp.down")
