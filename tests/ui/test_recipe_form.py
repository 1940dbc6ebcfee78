"""Each field of a recipe's parts gets the widget that suits its declaration."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pytest

from workbench.recipe import BuildLimits, Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.ui.recipe_form import FieldsBox


@pytest.mark.parametrize(
    ("part", "widgets"),
    [
        (
            Recipe(),
            {
                "model": ipywidgets.Text,
                "dtype": ipywidgets.Dropdown,
                "keep": ipywidgets.Text,
                "max_positions": ipywidgets.IntText,
            },
        ),
        (Int8WeightOnly(), {}),
        (Int4WeightOnly(), {"group_size": ipywidgets.IntText}),
        (
            SmoothQuant(),
            {
                "weight": ipywidgets.Dropdown,
                "activation": ipywidgets.Dropdown,
                "alpha": ipywidgets.FloatText,
                "groups": ipywidgets.Checkbox,
            },
        ),
        (Int8KVCache(), {"granularity": ipywidgets.Dropdown, "percentile": ipywidgets.FloatText}),
        (
            BuildLimits(),
            {
                "max_batch_size": ipywidgets.IntText,
                "max_input_len": ipywidgets.IntText,
                "max_output_len": ipywidgets.IntText,
                "targets": ipywidgets.Checkbox,
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_field_has_its_widget(part: Any, widgets: dict[str, type]) -> None:
    box = FieldsBox(type(part), lambda *_: None)
    assert {name: type(field.controls[0]) for name, field in box.fields.items()} == widgets
    box.show(part)
    assert {name: field.value for name, field in box.fields.items()} == {name: getattr(part, name) for name in widgets}
    for field in box.fields.values():
        assert all(control.tooltip for control in field.controls)
        assert "wb-about" in field.row.children[1].value


def test_a_field_can_be_left_out() -> None:
    assert "model" not in FieldsBox(Recipe, lambda *_: None, leave_out=("model",)).fields


def test_what_is_chosen_is_told_as_the_field_takes_it() -> None:
    told: list[tuple[str, Any]] = []
    box = FieldsBox(SmoothQuant, lambda name, value: told.append((name, value)))
    box.show(SmoothQuant())
    told.clear()
    box.fields["weight"].controls[0].value = "per_tensor"
    box.fields["alpha"].controls[0].value = 0.5
    box.fields["groups"].controls[1].value = False
    assert told == [("weight", "per_tensor"), ("alpha", 0.5), ("groups", ("qkv", "gate_up", "down"))]


@pytest.mark.parametrize(
    "text", ["lm_head layers.0.mlp.down", "lm_head, layers.0.mlp.down", " lm_head ,layers.0.mlp.down "]
)
def test_names_stand_with_spaces_or_commas(text: str) -> None:
    told: list[Any] = []
    box = FieldsBox(Recipe, lambda _, value: told.append(value), leave_out=("model", "dtype"))
    box.fields["keep"].controls[0].value = text
    assert told == [("lm_head", "layers.0.mlp.down")]
