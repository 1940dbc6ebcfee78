"""A chart's description drawn by matplotlib: for places without widgets, and for a figure to save.

As in the widget the legend stands above the plot, where it covers nothing, and names keep out of each other's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox, TransformedBbox

from workbench.evaluation.axis_ticks import set_ticks
from workbench.evaluation.figure_labels import Label, write_labels
from workbench.evaluation.palette import EDGE, GRID
from workbench.ui.chart import Bars, Chart, Line, Mark, Points, Rule, to_png

PIXELS_PER_INCH = 100
MOST_PIXELS = 1250
MANY_POINTS = 300
# Half a marker that stands on the frame is drawn outside of it.
_OVER_FRAME_PX = 5
_LEGEND_SIZE = 8
# In units of the legend's font: a key with the room around it, and one line of entries.
_KEY_WIDTH, _ENTRY_HEIGHT = 4.2, 1.6
# What the numbers and the name of the y axis take of a chart's width.
_BESIDE_PX = 80


class Picture(Figure):
    """A figure that a notebook shows when a cell ends with it, whether pyplot was set up or not."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def figure_of(charts: Sequence[Chart], title: str = "") -> Figure:
    """The charts in rows of at most :data:`MOST_PIXELS`."""
    width = max((sum(chart.width for chart in row) for row in _rows(charts)), default=520)
    height = rows_height(charts) or 1.2
    figure = Picture(
        figsize=(width / PIXELS_PER_INCH, height + (0.35 if title else 0)),
        layout="constrained",
        facecolor="white",
    )
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    draw_rows(figure, charts)
    return figure


def rows_height(charts: Sequence[Chart]) -> float:
    """How much :func:`draw_rows` needs for charts of their own height, in inches: legends come on top of it."""
    return sum(_row_height(row) for row in _rows(charts))


def draw_rows(figure: FigureBase, charts: Sequence[Chart]) -> None:
    """The charts into a figure or a part of one, in rows of at most :data:`MOST_PIXELS`; to be called last.

    Names inside the plots are placed in the layout that the whole figure has then.
    """
    rows = _rows(charts)
    heights = [_row_height(row) for row in rows]
    parts: Sequence[Any] = (
        list(figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]) if rows else []
    )
    labels: dict[Axes, list[Label]] = {}
    for part, row in zip(parts, rows, strict=True):
        ratios = [chart.width for chart in row]
        for axes, chart in zip(part.subplots(1, len(row), squeeze=False, width_ratios=ratios)[0], row, strict=True):
            labels[axes] = _draw_chart(axes, chart)
            # One height for all titles of a row, above the tallest legend.
            axes.set_title(chart.title, fontsize=10, pad=4 + 72 * max(map(_legend_height, row)))
    write_labels(labels)


def _row_height(row: Sequence[Chart]) -> float:
    return max(chart.height / PIXELS_PER_INCH + _legend_height(chart) for chart in row)


def _rows(charts: Sequence[Chart]) -> list[list[Chart]]:
    rows: list[list[Chart]] = []
    for chart in charts:
        if not rows or sum(each.width for each in rows[-1]) + chart.width > MOST_PIXELS:
            rows.append([])
        rows[-1].append(chart)
    return rows


def _draw_chart(axes: Axes, chart: Chart) -> list[Label]:
    """All but the title, and the labels, which are returned."""
    _set_axes(axes, chart)
    for mark in chart.marks:
        if isinstance(mark, Line):
            line = _draw_line(axes, mark)
            if mark.marker:
                _let_over_frame(line, chart)
        elif isinstance(mark, Points):
            _let_over_frame(_draw_points(axes, mark), chart)
        elif isinstance(mark, Bars):
            axes.bar(mark.x, mark.y, width=mark.width, color=_colors(mark.colors), label=mark.label or None)
        else:
            _draw_rule(axes, mark)
    axes.set_xlim(chart.x.low, chart.x.high)
    axes.set_ylim(chart.y.low, chart.y.high)
    if chart.diagonal:
        axes.axline((0, 0), slope=1, color=EDGE, linewidth=0.8, linestyle="--", zorder=1)
    _draw_legend(axes, chart)
    return [label for mark in chart.marks for label in _labels(mark)]


def _labels(mark: Mark) -> list[Label]:
    """What is written inside the plot."""
    if isinstance(mark, Rule):
        known = mark.label and np.isfinite(mark.at)
        return [Label(mark.label, color=mark.color, **{mark.axis: float(mark.at)})] if known else []
    if not isinstance(mark, Points):
        return []
    places = zip(np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64), mark.names, strict=False)
    return [Label(name, float(x), float(y)) for x, y, name in places if name and np.isfinite(x) and np.isfinite(y)]


def _let_over_frame(artist: Artist, chart: Chart) -> None:
    """Cut markers off a little outside the frame, so that the one of a value at a limit is whole."""
    x, y = (_OVER_FRAME_PX / max(1, length - _BESIDE_PX) for length in (chart.width, chart.height))
    axes = artist.axes
    assert axes is not None
    artist.set_clip_path(None)
    artist.set_clip_box(TransformedBbox(Bbox.from_extents(-x, -y, 1 + x, 1 + y), axes.transAxes))


def _draw_legend(axes: Axes, chart: Chart) -> None:
    """Between the title and the plot, centred, in as few lines as its entries take."""
    entries = _entries(chart)
    if not entries:
        return
    columns = _legend_columns(chart)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=columns,
        fontsize=_LEGEND_SIZE,
        frameon=False,
        handlelength=1.8,
        handletextpad=0.6,
        columnspacing=1.4,
        labelspacing=0.3,
        borderpad=0.1,
        borderaxespad=0.2,
    )


def _entries(chart: Chart) -> list[str]:
    return [mark.label for mark in chart.marks if mark.label and not isinstance(mark, Rule)]


def _legend_columns(chart: Chart) -> int:
    """As many as fit beside each other; matplotlib fills them one after the other."""
    points = 72 / PIXELS_PER_INCH
    widths = [_text_width(text) for text in _entries(chart)]
    for columns in range(len(widths), 1, -1):
        taken = sum(max(part) + _KEY_WIDTH * _LEGEND_SIZE for part in np.array_split(widths, columns))
        if taken <= (chart.width - _BESIDE_PX) * points:
            return columns
    return 1


@lru_cache(1024)
def _text_width(text: str) -> float:
    """In points, as the legend writes it."""
    return float(np.ptp(TextPath((0, 0), text, size=_LEGEND_SIZE).vertices[:, 0])) if text.strip() else 0.0


def _legend_height(chart: Chart) -> float:
    """In inches."""
    count = len(_entries(chart))
    return -(-count // _legend_columns(chart)) * _ENTRY_HEIGHT * _LEGEND_SIZE / 72


def _set_axes(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x.label, fontsize=9)
    axes.set_ylabel(chart.y.label, fontsize=9)
    axes.set_xscale(chart.x.scale)
    axes.set_yscale(chart.y.scale)
    for axis, which in ((chart.x, axes.xaxis), (chart.y, axes.yaxis)):
        if axis.ticks:
            which.set_ticks([at for at, _ in axis.ticks], [text for _, text in axis.ticks])
        else:
            set_ticks(which)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, mark: Line) -> Artist:
    color = mark.color or EDGE
    x, y = np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64)
    if mark.fill:
        axes.fill_between(x, y, step="post" if mark.step else None, color=color, alpha=0.2, linewidth=0)
    (line,) = axes.plot(
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
    return line


def _draw_points(axes: Axes, mark: Points) -> Artist:
    many = len(np.asarray(mark.x)) > MANY_POINTS
    return axes.scatter(
        np.asarray(mark.x),
        np.asarray(mark.y),
        s=(mark.size * 0.72) ** 2,
        c=_colors(mark.colors),
        alpha=0.5 if many else 1.0,
        linewidths=0,
        label=mark.label or None,
        zorder=3,
    )


def _draw_rule(axes: Axes, mark: Rule) -> None:
    style: dict[str, Any] = {"color": mark.color or EDGE, "linewidth": 1.0, "linestyle": "--" if mark.dash else "-"}
    if mark.axis == "x":
        axes.axvline(mark.at, **style)
    else:
        axes.axhline(mark.at, **style)


def _colors(colors: str | Sequence[str]) -> str | list[str]:
    return (colors or EDGE) if isinstance(colors, str) else [color or EDGE for color in colors]
