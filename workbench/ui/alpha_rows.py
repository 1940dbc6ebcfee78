"""One layer's smoothing groups as rows of widgets: slider, error, lock, reset. Decides nothing: callbacks do."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets

from workbench.recipe import SMOOTHING_GROUPS

# Least and most width of each column, in px. The slider takes what the others leave; cells stand below each other, as
# no width depends on what a cell holds. The heading "alpha" stands over the slider, its note and their margins.
_WIDTHS = {
    "name": (100, 100),
    "slider": (150, 340),
    "note": (118, 118),
    "alpha": (272, 462),
    "error": (222, 222),
    "buttons": (166, 166),
}
_BUTTON_PX = 78
_ROW = {"flex_flow": "row wrap", "align_items": "center"}


@dataclass(frozen=True)
class RowCallbacks:
    """What a row tells; the first argument is the group (``down``).

    Attributes:
        chosen: the row was asked for.
        moved: its slider stands at an alpha now.
        locked: it is to be locked (True) or unlocked.
        reset: it is to follow the global alpha.
    """

    chosen: Callable[[str], None]
    moved: Callable[[str, float], None]
    locked: Callable[[str, bool], None]
    reset: Callable[[str], None]


@dataclass(frozen=True)
class RowView:
    """What a row shows.

    Attributes:
        alpha: where the slider stands.
        note: where that alpha comes from, in two or three words.
        own: whether the group has an alpha of its own.
        locked: whether it is locked.
        active: whether the charts show this group.
    """

    alpha: float
    note: str
    own: bool
    locked: bool
    active: bool


class GroupRow(ipywidgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """The widgets of one group.

    Args:
        group: ``qkv``, ``o``, ``gate_up`` or ``down``.
        callbacks: told what is done.
    """

    def __init__(self, group: str, callbacks: RowCallbacks) -> None:
        self.group = group
        site = SMOOTHING_GROUPS[group]
        self.name = ipywidgets.Button(
            description=group, tooltip=f"show {group} ({site}) in the charts", layout=_column("name")
        )
        self.slider = alpha_slider(f"Alpha of {group}", f"alpha of {group}", _column("slider"))
        self.slider.add_class("wb-unseen-label")  # the button beside it says the same to the eye
        self.note = ipywidgets.HTML(layout=_column("note"))
        self.error = ipywidgets.HTML(layout=_column("error"))
        self.lock = ipywidgets.ToggleButton(
            description="Lock", icon="lock", tooltip=f"tuning and resets leave a locked {group} alone"
        )
        self.reset = ipywidgets.Button(description="Reset", tooltip=f"let {group} follow the alpha of all groups again")
        self.lock.layout.width = self.reset.layout.width = f"{_BUTTON_PX}px"
        self.name.on_click(lambda _: callbacks.chosen(group))
        self.reset.on_click(lambda _: callbacks.reset(group))
        self.slider.observe(lambda change: callbacks.moved(group, change["new"]), "value")
        self.lock.observe(lambda change: callbacks.locked(group, change["new"]), "value")
        buttons = ipywidgets.HBox([self.lock, self.reset], layout=_column("buttons"))
        super().__init__([self.name, self.slider, self.note, self.error, buttons], layout=_ROW)
        self.add_class(f"wb-alpha-{group}")

    def show(self, view: RowView) -> None:
        """Put the group's values into the widgets."""
        self.slider.value = view.alpha
        self.slider.disabled = view.locked
        self.lock.value, self.lock.icon = view.locked, "lock" if view.locked else "unlock"
        self.reset.disabled = view.locked or not view.own
        self.name.button_style = "info" if view.active else ""
        self.note.value = f'<span class="wb-about">{html.escape(view.note)}</span>'

    def show_error(self, text: str) -> None:
        """Show the group's output error, in words."""
        self.error.value = f'<div class="wb-value">{html.escape(text)}</div>'


def _column(name: str) -> dict[str, str]:
    """The layout of a cell of a row."""
    least, most = _WIDTHS[name]
    return {"flex": f"1 0 {least}px", "width": f"{least}px", "max_width": f"{most}px"}


def alpha_slider(description: str, tooltip: str, layout: Mapping[str, str]) -> Any:
    """A slider from 0 to 1 in steps of 0.01 that tells every step while it is moved."""
    return ipywidgets.FloatSlider(
        min=0.0,
        max=1.0,
        step=0.01,
        readout_format=".2f",
        description=description,
        tooltip=tooltip,
        style={"description_width": "initial"},
        layout=layout,
    )


def rows_heading() -> Any:
    """What the columns of the rows are."""
    titles = {
        "name": "Group",
        "alpha": "Alpha: 0 flattens the weights, 1 the activations",
        "error": "Output error (least of those tried)",
    }
    cells = [
        ipywidgets.HTML(f'<div class="wb-about">{text}</div>', layout=_column(column))
        for column, text in titles.items()
    ]
    return ipywidgets.HBox([*cells, ipywidgets.Box(layout=_column("buttons"))], layout=_ROW)
