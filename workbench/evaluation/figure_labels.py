"""Where the texts inside a plot stand: beside what they name, off each other, off lines and points where there is room.

    write_labels({axes: [Label("99 %", x=0.4), Label("median", y=1.2), Label("64", x=12.0, y=30.0)]})

is called last, when all of a figure is drawn and its limits are final: the places follow from the finished layout, and
hold at any resolution. Knows nothing of what the labels mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Array = NDArray[np.float64]

FONT_SIZE = 8.0
# Distance of a label from what it names, and of the points that stand for a line, in points (1/72 inch).
_GAP, _STEP = 3.0, 2.5
# What a place costs, in points of lines under it. Another text under it is worse than any number of lines, and
# sticking out worse still; beside a neighbour of the line that it names it reads as the neighbour's.
_OVER_TEXT, _OUTSIDE, _MISTAKEN = 1e5, 1e7, 40.0
# A later place of the list is as good as an earlier one that has so much more under it.
_LATER = 0.2
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
_NO_MARKER = (None, "", " ", "None", "none")
_SHARES_ALONG = np.linspace(1.0, 0.0, 15)
_SHADE = 0.75
_MORE_ROWS = (1.4, -1.4, 2.6, -2.6, 3.8, -3.8)


@dataclass(frozen=True)
class Label:
    """A text and what it names, in the units of the axes.

    Attributes:
        text: one line.
        x, y: the point that it names; without ``y`` the vertical line at ``x``, without ``x`` the horizontal one.
        color: of the line or point; the text has a darker shade, which is read more easily. Empty for black.
    """

    text: str
    x: float | None = None
    y: float | None = None
    color: str = ""


def write_labels(labels: Mapping[Axes, Sequence[Label]], font_size: float = FONT_SIZE) -> None:
    """Write labels into the plots of one figure, each at the best of the places around what it names."""
    wanted = {axes: [label for label in each if label.text] for axes, each in labels.items()}
    if not any(wanted.values()):
        return
    figure = next(iter(wanted)).get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout is computed when a figure is drawn
    for axes, each in wanted.items():
        plot = _Plot(axes, each)
        for label in each:
            plot.write(label, font_size)


class _Plot:
    """One plot and what stands in it, in px of the figure as it is laid out.

    Args:
        axes: the plot.
        labels: all that will be written into it.
    """

    def __init__(self, axes: Axes, labels: Sequence[Label]) -> None:
        figure = axes.get_figure(root=True)
        assert figure is not None
        self._axes = axes
        self._px_per_point = figure.dpi / 72
        self._frame = axes.get_window_extent()
        self._drawn = _drawn_points(axes, _STEP * self._px_per_point)
        legend = axes.get_legend()
        self._texts: list[Bbox] = [] if legend is None else [legend.get_window_extent()]
        self._lines = [self._px_across(label.x) for label in labels if label.x is not None and label.y is None]

    def _px_across(self, x: float) -> float:
        return float(self._axes.transData.transform((x, 1.0))[0])

    def write(self, label: Label, font_size: float) -> None:
        """At the place of least cost; the first of those that are equally good."""
        shade = tuple(_SHADE * part for part in to_rgb(label.color or "black"))
        text = self._axes.text(0, 0, label.text, fontsize=font_size, color=shade, va="bottom", ha="left", zorder=4)
        text.set_bbox(_PAPER)
        text.set_in_layout(False)
        size = text.get_window_extent()
        boxes = [
            Bbox.from_bounds(left, bottom, size.width, size.height)
            for left, bottom in self._places(label, size.width, size.height)
        ]
        best = min(enumerate(boxes), key=lambda item: self._cost(item[1], label) + _LATER * item[0])[1]
        self._put(text, best)

    def _put(self, text: Text, box: Bbox) -> None:
        self._texts.append(box)
        frame = self._frame
        text.set_transform(self._axes.transAxes)
        text.set_position(((box.x0 - frame.x0) / frame.width, (box.y0 - frame.y0) / frame.height))

    def _places(self, label: Label, width: float, height: float) -> Iterator[tuple[float, float]]:
        """Lower left corners, the best first."""
        gap, frame = _GAP * self._px_per_point, self._frame
        if label.x is not None and label.y is not None:
            yield from self._around(label.x, label.y, width, height)
        elif label.x is not None:
            at = self._px_across(label.x)
            rows = int((frame.height - 2 * gap) // (height + 1))
            for row in range(max(rows, 1)):
                bottom = frame.y1 - gap - height - row * (height + 1)
                yield at + gap, bottom
                yield at - gap - width, bottom
        elif label.y is not None:
            at = float(self._axes.transData.transform((1.0, label.y))[1])
            room = frame.width - width - 2 * gap
            for share in _SHARES_ALONG:
                yield frame.x0 + gap + share * room, at + gap / 2
                yield frame.x0 + gap + share * room, at - gap / 2 - height

    def _around(self, x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float]]:
        """Right above, right below, left above, left below; then further up and down."""
        gap = _GAP * self._px_per_point
        at, up = map(float, self._axes.transData.transform((x, y)))
        sides = at + 1.5 * gap, at - 1.5 * gap - width
        for left in sides:
            yield left, up
            yield left, up - height
        for rows in _MORE_ROWS:
            for left in sides:
                yield left, up - height / 2 + rows * height

    def _cost(self, box: Bbox, label: Label) -> float:
        frame = self._frame
        out = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0.0)
        texts = sum(box.overlaps(other) for other in self._texts)
        room = box.padded(1)
        inside = ((self._drawn > room.min) & (self._drawn < room.max)).all(axis=1)
        mistaken = label.y is None and self._is_near_a_neighbour(box, float(label.x or 0.0))
        return float(_OUTSIDE * (out > 0.5) + out + _OVER_TEXT * texts + _MISTAKEN * mistaken + inside.sum())

    def _is_near_a_neighbour(self, box: Bbox, x: float) -> bool:
        """Whether a vertical line other than the one at ``x`` passes between it and most of the box."""
        at = self._px_across(x)
        reach = 3 * _GAP * self._px_per_point
        low, high = (at, at + reach) if box.x0 > at else (at - reach, at)
        return any(low < other < high for other in self._lines if abs(other - at) > 0.5)


def _drawn_points(axes: Axes, step: float) -> Array:
    """``[points, 2]``: points in px that stand for all that is drawn, at most ``step`` px apart."""
    per_point = step / _STEP
    shapes = [_corners(line) for line in axes.lines]
    shapes += [patch.get_transform().transform(patch.get_path().vertices) for patch in axes.patches]
    # What runs out of the plot, as a logarithm of 0 does, runs far.
    frame = axes.get_window_extent().padded(20 * step)
    found = [_along(np.clip(corners, frame.min, frame.max), step) for corners in shapes]
    found += [
        _around_dots(_corners(line), line.get_markersize() / 2 * per_point)
        for line in axes.lines
        if line.get_marker() not in _NO_MARKER
    ]
    for dots in axes.collections:
        if isinstance(dots, PathCollection):
            at = np.ma.filled(dots.get_offset_transform().transform(dots.get_offsets()), np.nan)
            found.append(_around_dots(at, float(np.sqrt(dots.get_sizes().max(initial=0.0))) / 2 * per_point))
    points: Array = np.concatenate([np.empty((0, 2)), *found])
    return points[np.isfinite(points).all(axis=1)]


def _around_dots(at: Array, radius: float) -> Array:
    """The middle and the four ends of each dot."""
    ends = radius * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    found: Array = (at[:, None, :] + ends).reshape(-1, 2)
    return found


def _corners(line: Line2D) -> Array:
    """A line's corners in px, those of its steps too; not finite where it has a gap."""
    corners: Array = line.get_transform().transform(line.get_path().vertices)
    if not line.get_drawstyle().startswith("steps") or len(corners) < 2:
        return corners
    return np.column_stack([np.repeat(corners[:, 0], 2)[1:], np.repeat(corners[:, 1], 2)[:-1]])


def _along(corners: Array, step: float) -> Array:
    """Points on the lines between corners."""
    ends = corners[:-1], corners[1:]
    known = np.isfinite(ends[0]).all(axis=1) & np.isfinite(ends[1]).all(axis=1)
    pieces = [
        np.linspace(start, end, 1 + min(2000, int(np.hypot(*(end - start)) // step)), endpoint=False)
        for start, end in zip(ends[0][known], ends[1][known], strict=True)
    ]
    return np.concatenate([np.empty((0, 2)), *pieces, corners[-1:]])
