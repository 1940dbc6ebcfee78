"""Ticks of figures: plain numbers where they are short, powers of ten beyond."""

from __future__ import annotations

import pytest
from figure_texts import tick_texts
from matplotlib.figure import Figure

from workbench.evaluation.axis_ticks import linear_ticks, log_ticks, number_text, set_ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "texts"),
    [
        (2.8, 5.2, 4, ["3", "4", "5"]),
        (14.0, 110.0, 6, ["20", "50", "100"]),
        (0.05, 3.0, 8, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (0.004, 9000.0, 8, ["0.01", "0.1", "1", "10", "100", "1000"]),
        (0.01, 10_000.0, 8, ["0.01", "0.1", "1", "10", "100", "1000", "10000"]),
        (0.01, 40_000.0, 8, ["10⁻²", "0.1", "1", "10", "100", "10³", "10⁴"]),
        (1e-7, 1e3, 6, ["10⁻⁶", "10⁻⁴", "10⁻²", "1", "100"]),
        (2e-5, 4e-5, 4, ["2×10⁻⁵", "2.5×10⁻⁵", "3×10⁻⁵", "3.5×10⁻⁵", "4×10⁻⁵"]),
    ],
)
def test_log_ticks(low, high, most, texts):
    ticks = log_ticks(low, high, most)
    assert [text for _, text in ticks] == texts
    assert all(low * 0.999 <= at <= high * 1.001 for at, _ in ticks)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-150, 120, ["−150", "−100", "−50", "0", "50", "100"]),
        (0, 29_000, ["0", "5k", "10k", "15k", "20k", "25k"]),
        (3, 3, []),
    ],
)
def test_linear_ticks(low, high, texts):
    assert [text for _, text in linear_ticks(low, high, 6)] == texts


def test_numbers_have_four_digits():
    assert [number_text(each) for each in (0, 0.12345, 250_000, 1.2e-4, 3e6, -2e-5)] == [
        "0", "0.1235", "250000", "1.2×10⁻⁴", "3×10⁶", "-2×10⁻⁵"
    ]  # fmt: skip


def test_ticks_follow_the_limits_and_the_length_of_their_axis():
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.plot([0, 1], [2, 40])
    set_ticks(axes.yaxis)
    assert tick_texts(axes.yaxis) == ["2", "5", "10", "20"]
    axes.set_ylim(0.3, 0.9)
    assert tick_texts(axes.yaxis)[:3] == ["0.3", "0.4", "0.5"]
    few = len(tick_texts(axes.yaxis))
    figure.set_size_inches(4, 9)
    assert len(tick_texts(axes.yaxis)) > few


def test_a_value_of_zero_leaves_a_logarithmic_axis_its_limits():
    axes = Figure().subplots()
    axes.set_yscale("log")
    set_ticks(axes.yaxis)
    axes.plot([0, 1, 2], [0, 1e-3, 10])
    assert 0 < axes.get_ylim()[0] <= 1e-3
