from __future__ import annotations

import ipywidgets

from workbench.ui.widget_tree import close_parts, close_tree, put


def closed(*widgets: ipywidgets.Widget) -> list[bool]:
    return [widget.comm is None for widget in widgets]


def test_everything_below_is_closed_with_its_layout_and_style() -> None:
    slider = ipywidgets.IntSlider()
    row = ipywidgets.HBox([slider])
    outer = ipywidgets.Accordion([row])
    parts = (row, slider, slider.layout, slider.style, row.layout)
    close_parts(outer)
    assert closed(*parts) == [True] * 5
    assert closed(outer) == [False]
    close_tree(outer)
    close_tree(outer)
    assert closed(outer) == [True]


def test_parts_end_in_their_own_way() -> None:
    ended = []

    class Box(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
        def close(self) -> None:
            ended.append("box")
            super().close()

    box = Box()
    close_tree(ipywidgets.HBox([ipywidgets.HBox([box])]))
    assert box.comm is None
    assert ended == ["box"]


def test_what_is_replaced_is_closed_and_what_stays_is_not() -> None:
    stays, goes, comes = ipywidgets.Text(), ipywidgets.HBox([ipywidgets.Text()]), ipywidgets.Text()
    inside = goes.children[0]
    box = ipywidgets.VBox([stays, goes])
    put(box, stays, comes)
    assert box.children == (stays, comes)
    assert closed(stays, goes, inside, comes) == [False, True, True, False]
