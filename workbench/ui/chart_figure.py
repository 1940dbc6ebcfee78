"""A chart's description drawn by matplotlib: for places without widgets, and for a figure to save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from workbench.evaluation.palette import EDGE, GRID
from workbench.ui.chart import Bars, Chart, Line, Points, Rule, to_png

PIXELS_PER_INCH = 100
MOST_PIXELS = 1250
MANY_POINTS = 300


class Picture(Figure):
    """A figure that a notebook shows when a cell ends with it, whether pyplot was set up or not."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def figure_of(charts: Sequence[Chart], title: str = "") -> Figure:
    """The charts in rows of at most :data:`MOST_PIXELS`."""
    rows = _rows(charts)
    width = max((sum(chart.width for chart in row) for row in rows), default=520)
    height = sum(max(chart.height for chart in row) for row in rows) or 120
    figure = Picture(
        figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH + (0.35 if title else 0)),
        layout="constrained",
        facecolor="white",
    )
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    draw_rows(figure, charts)
    return figure


def draw_rows(figure: FigureBase, charts: Sequence[Chart]) -> None:
    """The charts into a figure or a part of one, in rows of at most :data:`MOST_PIXELS`."""
    rows = _rows(charts)
    parts: Sequence[Any] = list(figure.subfigures(len(rows), 1, squeeze=False)[:, 0]) if rows else []
    for part, row in zip(parts, rows, strict=True):
        ratios = [chart.width for chart in row]
        for axes, chart in zip(part.subplots(1, len(row), squeeze=False, width_ratios=ratios)[0], row, strict=True):
            _draw_chart(axes, chart)


def _rows(charts: Sequence[Chart]) -> list[list[Chart]]:
    rows: list[list[Chart]] = []
    for chart in charts:
        if not rows or sum(each.width for each in rows[-1]) + chart.width > MOST_PIXELS:
            rows.append([])
        rows[-1].append(chart)
    return rows


def _draw_chart(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=10)
    _set_axes(axes, chart)
    for mark in chart.marks:
        if isinstance(mark, Line):
            _draw_line(axes, mark)
        elif isinstance(mark, Points):
            _draw_points(axes, mark)
        elif isinstance(mark, Bars):
            axes.bar(mark.x, mark.y, width=mark.width, color=_colors(mark.colors), label=mark.label or None)
        else:
            _draw_rule(axes, mark)
    axes.set_xlim(chart.x.low, chart.x.high)
    axes.set_ylim(chart.y.low, chart.y.high)
    if chart.diagonal:
        axes.axline((0, 0), slope=1, color=EDGE, linewidth=0.8, linestyle="--", zorder=1)
    if any(mark.label for mark in chart.marks if not isinstance(mark, Rule)):
        axes.legend(fontsize=8, frameon=False)


def _set_axes(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x.label, fontsize=9)
    axes.set_ylabel(chart.y.label, fontsize=9)
    axes.set_xscale(chart.x.scale)
    axes.set_yscale(chart.y.scale)
    for axis, which in ((chart.x, axes.xaxis), (chart.y, axes.yaxis)):
        if axis.ticks:
            which.set_ticks([at for at, _ in axis.ticks], [text for _, text in axis.ticks])
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, mark: Line) -> None:
    color = mark.color or EDGE
    x, y = np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64)
    if mark.fill:
        axes.fill_between(x, y, step="post" if mark.step else None, color=color, alpha=0.2, linewidth=0)
    axes.plot(
        x,
        y,
        color=color,
        label=mark.label or None,
        linestyle="--" if mark.dash else "-",
        linewidth=1.4,
        drawstyle="steps-post" if mark.step else "default",
        marker=mark.marker or None,
        markersize=4,
    )


def _draw_points(axes: Axes, mark: Points) -> None:
    many = len(np.asarray(mark.x)) > MANY_POINTS
    axes.scatter(
        np.asarray(mark.x),
        np.asarray(mark.y),
        s=(mark.size * 0.72) ** 2,
        c=_colors(mark.colors),
        alpha=0.5 if many else 1.0,
        linewidths=0,
        label=mark.label or None,
        zorder=3,
    )
    for x, y, name in zip(np.asarray(mark.x), np.asarray(mark.y), mark.names, strict=False):
        if name:
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)


def _draw_rule(axes: Axes, mark: Rule) -> None:
    style: dict[str, Any] = {"color": mark.color or EDGE, "linewidth": 1.0, "linestyle": "--" if mark.dash else "-"}
    if mark.axis == "x":
        axes.axvline(mark.at, **style)
        axes.text(
            mark.at,
            0.98,
            " " + mark.label,
            transform=axes.get_xaxis_transform(),
            rotation=90,
            fontsize=8,
            va="top",
            ha="right",
        )
    else:
        axes.axhline(mark.at, **style)
        axes.text(0.99, mark.at, mark.label, transform=axes.get_yaxis_transform(), fontsize=8, va="bottom", ha="right")


def _colors(colors: str | Sequence[str]) -> str | list[str]:
    return (colors or EDGE) if isinstance(colors, str) else [color or EDGE for color in colors]
