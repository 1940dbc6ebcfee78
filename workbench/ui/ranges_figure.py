"""The map of activation ranges drawn by matplotlib, with its colour bar: the static twin of the heat map in the panel.

Computes nothing; the close-up below it is a row of charts (:mod:`workbench.ui.chart_figure`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import FigureBase

from workbench.evaluation.axis_ticks import set_ticks
from workbench.evaluation.palette import CHOSEN, EXACT, MISSING
from workbench.ui.cell_colors import ColoredCells, color_cells, value_text

if TYPE_CHECKING:
    from workbench.ui.ranges_charts import RangeMap

# Numbers of layers beside each other: more would not fit.
_MOST_COLUMNS = 30


def draw_map(figure: FigureBase, cells: RangeMap, place: str, note: str = "") -> None:
    """The cells, the chosen one framed, and what their colours mean.

    Args:
        figure: a figure or a part of one.
        cells: the map.
        place: the chosen one; a place that the map lacks frames none.
        note: a sentence below the map; empty for none.
    """
    axes = figure.subplots()
    shown = color_cells(cells.values, cells.view)
    pixels = [[to_rgb("white" if color == MISSING else color) for color in row] for row in shown.colors]
    axes.imshow(pixels, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(cells.sites)), cells.sites, fontsize=8)
    step = -(-len(cells.columns) // _MOST_COLUMNS)
    axes.set_xticks(range(0, len(cells.columns), step), cells.columns[::step], fontsize=8)
    axes.set_xlabel("\n".join(["layer", *([note] if note else [])]), fontsize=9)
    axes.set_title(_title(cells, shown), fontsize=10)
    row, column = cells.cell_of(place)
    if row >= 0:
        axes.plot([column], [row], marker="s", markersize=9, markerfacecolor="none", color=CHOSEN, markeredgewidth=2)
    _draw_bar(figure, axes, cells, shown)


def _title(cells: RangeMap, shown: ColoredCells) -> str:
    """What is shown, and from where to where it reaches."""
    words = cells.view.label
    if shown.least is not None and shown.largest is not None:
        words += f": {value_text(shown.least, cells.view)} to {value_text(shown.largest, cells.view)}"
    return words + ("; grey: 0" if EXACT in shown.colors else "")


def _draw_bar(figure: FigureBase, axes: Axes, cells: RangeMap, shown: ColoredCells) -> None:
    if shown.best is None or shown.worst is None:
        return
    low, high = sorted((shown.best, shown.worst))
    if high <= low:  # all cells have one colour: the lowest, or the middle one of a scale that has a middle
        least = low if cells.view.center is None else (low / 2 if cells.view.log else low - 1)
        low, high = (least, high * 2) if cells.view.log else (least, high + 1)
    norm = LogNorm(low, high) if cells.view.log else Normalize(low, high)
    bar = figure.colorbar(ScalarMappable(norm, colormaps[cells.view.colors]), ax=axes, pad=0.01, aspect=24)
    set_ticks(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(cells.view.meaning or cells.view.label, fontsize=8)
