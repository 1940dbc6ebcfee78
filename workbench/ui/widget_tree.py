"""A widget and all that it is made of: closing the whole, and what is replaced in a box. Knows no panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ipywidgets


def parts_of(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """The widgets that a widget's synchronized traits hold: its children, its layout, its style."""
    for name in widget.keys:
        if widget.trait_has_value(name):  # one that was never asked for is not made now
            yield from _widgets_in(getattr(widget, name))


def close_parts(widget: ipywidgets.Widget) -> None:
    """Close everything below a widget, each with its own ``close``; the widget itself stays.

    Ipywidgets closes one widget at a time, and keeps what is not closed for good, with all that its callbacks hold.
    """
    for part in list(parts_of(widget)):
        if part.comm is not None:  # not closed yet: a part may be reached in two ways
            close_parts(part)
            part.close()


def close_tree(widget: ipywidgets.Widget) -> None:
    """Close a widget and everything below it; nothing happens when it is closed already."""
    if widget.comm is not None:
        close_parts(widget)
        widget.close()


def put(box: ipywidgets.Box, *widgets: ipywidgets.Widget) -> None:
    """Make these a box's children, and close those that it had and that are not among them."""
    dropped = [child for child in box.children if child not in widgets]
    box.children = widgets
    for child in dropped:
        close_tree(child)


def _widgets_in(value: Any) -> Iterator[ipywidgets.Widget]:
    if isinstance(value, ipywidgets.Widget):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _widgets_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _widgets_in(each)
