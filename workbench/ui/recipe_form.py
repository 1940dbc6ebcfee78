"""Widgets for the fields of a recipe, made from the recipe's own declarations: a new field needs no widget of its own.

Knows what a field's declaration says (choices, help, type), and nothing about what the fields mean.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

_LABEL = {"description_width": "150px"}
_WIDTH = "330px"

# Told the name of a field and its new value.
Changed = Callable[[str, Any], None]


class FieldsBox(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """One widget for each field of a part of a recipe.

    Args:
        owner: the dataclass that the part is.
        changed: told what is chosen; :meth:`show` causes such calls too, and its caller passes them over.
        leave_out: fields that have widgets elsewhere, or none.

    Attributes:
        fields: widgets by the name of their field.
    """

    def __init__(self, owner: type[Any], changed: Changed, leave_out: tuple[str, ...] = ()) -> None:
        items = [item for item in dataclasses.fields(owner) if "flags" in item.metadata and item.name not in leave_out]
        self.fields = {item.name: field_widget(item, changed) for item in items if _default_of(item) is not None}
        super().__init__([field.row for field in self.fields.values()])

    def show(self, part: Any) -> None:
        """Put the values of one such part into the widgets."""
        for name, field in self.fields.items():
            field.value = getattr(part, name)


class FieldWidget:
    """The widget of one field, its explanation beside it.

    Attributes:
        row: both.
        controls: what a person changes: one widget, or a box to tick for each choice.
    """

    def __init__(self, item: dataclasses.Field[Any], controls: list[Any], changed: Changed) -> None:
        self.name, self.controls = item.name, controls
        about = ipywidgets.HTML(f'<span class="wb-about">{html.escape(str(item.metadata["help"]))}</span>')
        self.row = ipywidgets.HBox([self.head(), about], layout={"flex_flow": "row wrap", "align_items": "center"})
        for control in controls:
            control.tooltip = str(item.metadata["help"])
            control.observe(lambda _change: changed(self.name, self.value), "value")

    def head(self) -> Any:
        """The controls as the row shows them."""
        return self.controls[0]

    @property
    def value(self) -> Any:
        """As the recipe's field takes it; assigning it changes the widget."""
        return self.controls[0].value

    @value.setter
    def value(self, value: Any) -> None:
        self.controls[0].value = value


class WordsWidget(FieldWidget):
    """A list of names, written with spaces or commas between them."""

    @property
    def value(self) -> tuple[str, ...]:
        return tuple(self.controls[0].value.replace(",", " ").split())

    @value.setter
    def value(self, value: tuple[str, ...]) -> None:
        self.controls[0].value = " ".join(value)


class TicksWidget(FieldWidget):
    """A list out of fixed choices: a box to tick for each."""

    def head(self) -> Any:
        label = ipywidgets.Label(self.name, layout={"width": "146px", "justify_content": "flex-end"})
        return ipywidgets.HBox([label, *self.controls], layout={"flex_flow": "row wrap"})

    @property
    def value(self) -> tuple[str, ...]:
        return tuple(str(control.description) for control in self.controls if control.value)

    @value.setter
    def value(self, value: tuple[str, ...]) -> None:
        for control in self.controls:
            control.value = control.description in value


def field_widget(item: dataclasses.Field[Any], changed: Changed) -> FieldWidget:
    """The widget that suits a field's declaration: a menu, boxes to tick, words, a number, or a text."""
    default, choices = _default_of(item), tuple(item.metadata.get("choices", ()))
    look = {"description": item.name, "style": _LABEL, "layout": {"width": _WIDTH}}
    late = {"continuous_update": False, **look}
    if isinstance(default, tuple):
        if choices:
            small = {"indent": False, "layout": {"width": "auto", "margin": "2px 12px 2px 4px"}}
            return TicksWidget(item, [ipywidgets.Checkbox(description=name, **small) for name in choices], changed)
        return WordsWidget(item, [ipywidgets.Text(**late)], changed)
    if choices:
        return FieldWidget(item, [ipywidgets.Dropdown(options=choices, **look)], changed)
    made = {float: ipywidgets.FloatText, int: ipywidgets.IntText}.get(type(default), ipywidgets.Text)
    steps = {"step": 0.01} if isinstance(default, float) else {}
    return FieldWidget(item, [made(**steps, **late)], changed)


def _default_of(item: dataclasses.Field[Any]) -> Any:
    """A field's default; None for what no single widget holds: mappings, and parts that come in kinds."""
    default = None if item.default is dataclasses.MISSING else item.default
    return None if isinstance(default, Mapping) else default
