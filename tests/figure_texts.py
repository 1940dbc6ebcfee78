"""What is wrong with the texts of a matplotlib figure: one over another, one cut off, a legend over a plot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST_POINTS = 7.0
# Boxes have room for letters that reach further up and down than most do.
_TOUCH_PX = 1.5


def faults(figure: Figure) -> list[str]:
    """Every fault in words; empty when each text can be read."""
    figure.draw_without_rendering()
    texts = [(text, text.get_window_extent()) for text in _shown(figure)]
    page = figure.bbox.padded(0.5)
    found = [f"{_name(text)} is cut off" for text, box in texts if not _inside(box, page)]
    found += [f"{_name(text)} is tiny" for text, _ in texts if text.get_fontsize() < SMALLEST_POINTS]
    found += [f"{_name(a)} over {_name(b)}" for (a, one), (b, other) in combinations(texts, 2) if _overlap(one, other)]
    for axes in figure.axes:
        legend = axes.get_legend()
        if (
            axes.axison
            and legend is not None
            and not legend.get_frame_on()
            and _overlap(legend.get_window_extent(), axes.bbox)
        ):
            found.append(f"the legend of {axes.get_title()!r} over its plot")
    return found


def texts_in(axes: Axes) -> dict[str, Bbox]:
    """The labels inside a plot, with their places in px of a figure that is drawn."""
    root = axes.get_figure(root=True)
    assert isinstance(root, Figure)
    root.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


def tick_texts(axis: Axis) -> list[str]:
    """What the ticks in sight say."""
    low, high = sorted(axis.get_view_interval())
    root = axis.axes.get_figure(root=True)
    assert isinstance(root, Figure)
    root.draw_without_rendering()
    places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [label.get_text() for at, label in places if low <= at <= high]


def _shown(figure: Figure) -> Iterator[Text]:
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _out_of_sight(axis)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text


def _out_of_sight(axis: Axis) -> Iterator[Text]:
    """Labels of ticks that are not drawn, as they lie beyond the limits or their axes are switched off."""
    low, high = sorted(axis.get_view_interval())
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not low <= tick.get_loc() <= high or not axis.axes.axison:
            yield from (tick.label1, tick.label2)


def _overlap(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(width > _TOUCH_PX and height > _TOUCH_PX)


def _inside(box: Bbox, page: Bbox) -> bool:
    return bool(box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1)


def _name(text: Text) -> str:
    return repr(text.get_text())
