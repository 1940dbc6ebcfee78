"""A chart as a widget: SVG in the browser, with tooltips, and points that can be chosen.

    view = ChartView(chart)
    view.chart = other                     # replaced at once, in one message
    view.observe(on_choice, "selected")    # [mark, index] of the point that was clicked; [-1, -1] for none

A chart that is replaced is one in which nothing is chosen: ``selected`` goes back to ``[-1, -1]``. Computes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike

from workbench.ui.chart import Axis, Bars, Chart, Line, Mark, Points, Rule
from workbench.ui.scripts import joined

NONE_SELECTED = [-1, -1]


class ChartView(anywidget.AnyWidget):
    """One chart, as wide as its description says or as the place allows; with a ``layout``, as wide as that says.

    The mouse shows the nearest point's text; a click chooses it. With the keyboard: arrow keys go from point to point
    and from mark to mark, Enter chooses.

    Args:
        chart: what to show; None for nothing yet.
        clickable: whether a click on a point means something.

    Attributes:
        selected: ``[mark, index]`` of the chosen point, places in ``chart.marks`` and in the mark's ``x``.
        spec: what the browser is sent.
    """

    _esm = joined("elements.js", "chart_axes.js", "chart_names.js", "chart_view.js")
    _css = joined("chart_view.css")

    spec = traitlets.Dict().tag(sync=True)
    clickable = traitlets.Bool(True).tag(sync=True)
    selected = traitlets.List(traitlets.Int(), NONE_SELECTED, minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, chart: Chart | None = None, *, clickable: bool = True, **traits: Any) -> None:
        self._chart, self._has_own_width = chart, "layout" not in traits
        traits.setdefault("layout", {"max_width": "100%", "min_width": "0", "width": _width(chart)})
        super().__init__(spec=chart_spec(chart), clickable=clickable, **traits)

    @property
    def chart(self) -> Chart | None:
        """What is shown; assigning it replaces it."""
        return self._chart

    @chart.setter
    def chart(self, chart: Chart | None) -> None:
        spec = chart_spec(chart)
        if self._has_own_width and (self._chart is None or (chart is not None and chart.width != self._chart.width)):
            self.layout.width = _width(chart)
        self._chart = chart
        with self.hold_sync():
            self.spec = spec
            self.selected = NONE_SELECTED

    def __repr__(self) -> str:
        return f"ChartView({self._chart.title if self._chart else 'nothing'!r})"


def share_of_row(basis_px: int, grow: int = 1) -> dict[str, str]:
    """The layout of a chart, or a box, that shares a row with others.

    Args:
        basis_px: where the row has less room than everybody's together, the last ones begin a row of their own.
        grow: its part of the room that is left over, against the others'.
    """
    return {"flex": f"{grow} 1 {basis_px}px", "min_width": "0"}


def _width(chart: Chart | None) -> str | None:
    return f"{chart.width}px" if chart is not None else None


def chart_spec(chart: Chart | None) -> dict[str, Any]:
    """A chart as the browser is sent it: plain values, and arrays as the bytes of float64 (NaN and infinity too)."""
    if chart is None:
        return {}
    return {
        "title": chart.title,
        "width": chart.width,
        "height": chart.height,
        "diagonal": chart.diagonal,
        "x": _axis(chart.x),
        "y": _axis(chart.y),
        "marks": [_mark(mark) for mark in chart.marks],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "label": axis.label,
        "scale": axis.scale,
        "low": _limit(axis.low),
        "high": _limit(axis.high),
        "ticks": [[float(at), text] for at, text in axis.ticks],
    }


def _limit(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _mark(mark: Mark) -> dict[str, Any]:
    if isinstance(mark, Rule):
        return {
            "kind": "rule",
            "axis": mark.axis,
            "at": _limit(mark.at),
            "label": mark.label,
            "color": mark.color,
            "dash": mark.dash,
        }
    shown = {"x": _array(mark.x), "y": _array(mark.y), "label": mark.label, "texts": list(mark.texts)}
    match mark:
        case Line():
            return {
                "kind": "line",
                **shown,
                "color": mark.color,
                "dash": mark.dash,
                "step": mark.step,
                "fill": mark.fill,
                "marker": mark.marker,
            }
        case Points():
            return {
                "kind": "points",
                **shown,
                "colors": _colors(mark.colors),
                "size": mark.size,
                "names": list(mark.names),
            }
        case Bars():
            return {"kind": "bars", **shown, "colors": _colors(mark.colors), "width": mark.width}


def _colors(colors: Any) -> list[str]:
    """One for all, or one per point."""
    return [colors] if isinstance(colors, str) else list(colors)


def _array(values: ArrayLike) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()
