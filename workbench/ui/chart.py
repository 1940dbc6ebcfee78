"""A chart as data: axes and marks. Drawn twice from the same description: by matplotlib, and as SVG in a widget.

    chart = Chart("Error by alpha", Axis("alpha"), Axis("relative L2 error", "log"), [Line(alphas, errors)])
    view = ChartView(chart)          # workbench.ui.chart_view: a widget; view.chart = other replaces it
    figure = draw([chart], "title")  # the same in matplotlib

Knows nothing about models; whoever describes a chart has computed its numbers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows, with the unit in brackets.
        scale: "linear" or "log"; values at or below 0 are left out of a logarithmic axis.
        low, high: limits; None takes them from the marks.
        ticks: (position, text) of ticks of one's own, such as names of layers.
    """

    label: str
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Line:
    """A line through points; gaps where a value is not finite.

    Attributes:
        x, y: one value each.
        label: in the legend; empty for none.
        color: CSS hex colour; empty takes the text's own (for lines that carry no meaning by colour).
        dash: dashed.
        step: each value holds until the next point, as a histogram's outline: x are the bins' edges, the last y closes.
        fill: filled down to the axis.
        marker: "" or one of "o", "s", "D", "^", "v": each point is marked.
        texts: a tooltip per point; empty for "x, y".
    """

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    color: str = ""
    dash: bool = False
    step: bool = False
    fill: bool = False
    marker: str = ""
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check(self, self.texts)


@dataclass(frozen=True)
class Points:
    """Single points, of one colour or one each.

    Attributes:
        x, y: one value each.
        colors: one CSS hex colour for all, or one per point.
        size: diameter in px.
        names: written beside the point where not empty (for few points).
    """

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    colors: str | Sequence[str] = ""
    size: float = 4.0
    texts: Sequence[str] = ()
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check(self, self.texts, self.colors, self.names)


@dataclass(frozen=True)
class Bars:
    """Bars from the axis up; ``x`` are their centres, ``width`` is in units of x."""

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    colors: str | Sequence[str] = ""
    width: float = 0.8
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check(self, self.texts, self.colors)


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart at one value of x or y, with its name."""

    axis: Literal["x", "y"]
    at: float
    label: str = ""
    color: str = ""
    dash: bool = True


Mark = Line | Points | Bars | Rule


@dataclass(frozen=True)
class Chart:
    """Axes and what they hold.

    Attributes:
        title: one line above.
        x, y: the axes.
        marks: drawn in this order.
        width, height: in px; a widget may be narrower.
        diagonal: a dashed line where x equals y.
    """

    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark] = field(default_factory=tuple)
    width: int = 520
    height: int = 260
    diagonal: bool = False


def draw(charts: Sequence[Chart], title: str = "") -> Figure:
    """The charts side by side as one matplotlib figure; a row of them is at most about 1200 px wide."""
    from workbench.ui.chart_figure import figure_of  # matplotlib takes a while to import, and a widget needs none of it

    return figure_of(charts, title)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes at twice the screen's usual density."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def thin_out(x: ArrayLike, y: ArrayLike, most: int = 600) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most ``most`` points of a line, keeping its ends and each part's smallest and largest value.

    Args:
        x, y: ``[points]``; values that are not finite may be left out.
        most: at least 4.
    """
    x, y = np.asarray(x), np.asarray(y)
    kept = kept_points(y, most)
    return x[kept], y[kept]


def kept_points(y: ArrayLike, most: int = 600) -> NDArray[np.intp]:
    """The indices of the points that :func:`thin_out` keeps, ascending: for the tooltips that go with them."""
    y = np.asarray(y, dtype=np.float64)
    if len(y) <= most:
        return np.arange(len(y))
    parts = np.array_split(np.arange(len(y)), (most - 2) // 2)
    extremes = [
        part[find(np.where(np.isfinite(y[part]), y[part], otherwise))]
        for part in parts
        for find, otherwise in ((np.argmin, np.inf), (np.argmax, -np.inf))
    ]
    return np.unique([0, *extremes, len(y) - 1])


def _check(mark: Line | Points | Bars, *each: Sequence[str]) -> None:
    """Whatever comes one per point must come once per point.

    Raises:
        ValueError: it does not.
    """
    count = np.shape(mark.x)
    if np.shape(mark.y) != count or len(count) != 1:
        raise ValueError(f"{mark.label or type(mark).__name__}: x has shape {count}, y {np.shape(mark.y)}")
    for values in each:
        if not isinstance(values, str) and len(values) not in (0, *count):
            raise ValueError(
                f"{mark.label or type(mark).__name__}: {len(values)} texts or colors for {count[0]} points"
            )
