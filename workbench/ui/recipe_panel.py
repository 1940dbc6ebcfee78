"""The panel of the recipe itself: every choice as a widget, its YAML and its command line. Decides nothing of its own:
what is allowed is the recipe's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd

from workbench.bench.state import BenchState
from workbench.checkpoint.output_files import output_files
from workbench.errors import RecipeError
from workbench.recipe import WEIGHT_KINDS, BuildLimits, Int8KVCache, Recipe
from workbench.ui.history_buttons import HistoryButtons
from workbench.ui.model_facts import model_facts
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.recipe_form import FieldsBox
from workbench.ui.recipe_text import RecipeText
from workbench.ui.widget_tree import close_parts, close_tree

NONE = "none"
KV_KINDS: dict[str, type[Any]] = {Int8KVCache.kind: Int8KVCache}
KIND_NAMES = {
    NONE: "none: stay in dtype",
    "int8": "int8: weights only",
    "int4": "int4: weights only",
    "smoothquant": "smoothquant: INT8 weights and activations",
}
_LABEL = {"description_width": "150px"}


class RecipePanel(Panel):
    """The recipe live: what is chosen here moves the other panels, and what they choose moves this one.

    Args:
        state: a bench, or its state; None makes one of its own.

    Attributes:
        state: whose recipe is shown.
        text: the YAML and the command line.
    """

    def __init__(self, state: BenchState | None = None) -> None:
        self.state = state or BenchState()
        self.text = RecipeText(self.state)
        self._facts = ipywidgets.HTML()
        self._plain = FieldsBox(Recipe, self._plain_changed, leave_out=("model",))
        self._weights = KindBox("weights", dict(WEIGHT_KINDS), self._kind_chosen, self._field_changed)
        self._kv_cache = KindBox("kv_cache", KV_KINDS, self._kind_chosen, self._field_changed)
        self._build = FieldsBox(BuildLimits, self._limit_changed)
        self._own_alphas = ipywidgets.HTML()
        self._make_file_row()
        self._make_editor()
        limits = ipywidgets.Accordion([self._build], selected_index=None, titles=("Limits of an engine",))
        form = ipywidgets.VBox([self._plain, self._weights, self._own_alphas, self._kv_cache, limits])
        super().__init__([self._facts, form], "wb-recipe")
        head = ipywidgets.HBox([HistoryButtons(self.state, self), self._file_row], layout={"flex_flow": "row wrap"})
        self.children = (self._facts, head, form, self._status, self._editor, self.text)
        self.watch(self.state, self._recipe_changed, "recipe")
        self.watch(self.state, self._facts_changed, "calibration")
        self._recipe_changed()
        self._facts_changed()

    @property
    def recipe(self) -> Recipe:
        """The recipe that is shown."""
        return self.state.recipe

    @property
    def frame(self) -> pd.DataFrame:
        """One row per choice: ``choice`` as in the YAML, ``value``."""
        return pd.DataFrame(_flat(self.recipe.to_dict()), columns=["choice", "value"])

    def __repr__(self) -> str:
        recipe = self.recipe
        weights = recipe.weights.kind if recipe.weights else "not quantized"
        cache = recipe.kv_cache.kind if recipe.kv_cache else recipe.dtype
        return f"RecipePanel({recipe.dtype}, weights {weights}, KV cache {cache})"

    # ---- widgets

    def _make_file_row(self) -> None:
        self.path = ipywidgets.Text(
            value="recipe.yaml", description="File", tooltip="path of a YAML file", layout={"width": "330px"}
        )
        self.save_button = ipywidgets.Button(description="Save", icon="save", tooltip="write the recipe to this file")
        self.load_button = ipywidgets.Button(
            description="Load", icon="folder-open", tooltip="take the recipe from this file; the model stays"
        )
        self.edit_button = ipywidgets.Button(description="Edit YAML", icon="pencil", tooltip="edit the recipe as text")
        buttons = (self.save_button, self.load_button, self.edit_button)
        for button, callback in zip(buttons, (self._save, self._load, self._edit), strict=True):
            button.layout.width = "110px"
            button.on_click(callback)
        self._file_row = ipywidgets.HBox([self.path, *buttons], layout={"flex_flow": "row wrap"})

    def _make_editor(self) -> None:
        self.draft = ipywidgets.Textarea(
            description="Recipe as YAML",
            layout={"width": "calc(100% - 4px)", "height": "330px"},
            tooltip="the recipe as YAML",
        )
        self.draft.add_class("wb-draft")
        self.draft.add_class("wb-unseen-label")
        self.apply_button = ipywidgets.Button(
            description="Apply", icon="check", button_style="primary", tooltip="make this text the recipe"
        )
        self.cancel_button = ipywidgets.Button(description="Cancel", icon="times", tooltip="leave the recipe as it is")
        self.apply_button.on_click(self._apply)
        self.cancel_button.on_click(self._cancel)
        self._editor = ipywidgets.VBox(
            [self.draft, ipywidgets.HBox([self.apply_button, self.cancel_button])], layout={"display": "none"}
        )

    # ---- what the user does becomes the recipe

    @from_user
    def _plain_changed(self, name: str, value: Any) -> None:
        self._change(lambda recipe: replace(recipe, **{name: value}))

    @from_user
    def _limit_changed(self, name: str, value: Any) -> None:
        self._change(lambda recipe: replace(recipe, build=replace(recipe.build, **{name: value})))

    @from_user
    def _kind_chosen(self, part: str, value: Any) -> None:
        self._change(lambda recipe: replace(recipe, **{part: value}))

    @from_user
    def _field_changed(self, part: str, name: str, value: Any) -> None:
        self._change(lambda recipe: replace(recipe, **{part: replace(getattr(recipe, part), **{name: value})}))

    def _change(self, edit: Callable[[Recipe], Recipe]) -> None:
        """An illegal recipe is not taken, and the widgets go back to the one that stands."""
        try:
            self.state.change(edit)
            self.say("")
        except RecipeError as error:
            self.show_error(f"not taken: {error}")
            self._show_recipe()

    @shows_errors
    def _save(self, _button: Any) -> None:
        path = self._chosen_path()
        if path.exists():
            _require_recipe(path)
        try:
            with output_files({"recipe": path}) as drafts:
                self.recipe.save(drafts["recipe"])
        except OSError as error:
            raise RecipeError(f"recipe {path} cannot be written ({error.strerror})", fix="give another path") from error
        self.say(f"saved to {path}")

    @shows_errors
    def _load(self, _button: Any) -> None:
        path = self._chosen_path()
        loaded = Recipe.load(path)
        self.state.change(lambda recipe: replace(loaded, model=recipe.model or loaded.model))
        self.say(f"loaded from {path}")

    @shows_errors
    def _edit(self, _button: Any) -> None:
        self.draft.value = self.recipe.to_yaml()
        self._editor.layout.display = ""

    @shows_errors
    def _apply(self, _button: Any) -> None:
        written = Recipe.from_yaml(self.draft.value)
        model = self.recipe.model
        self.state.change(lambda _: replace(written, model=model or written.model))
        self._editor.layout.display = "none"
        kept = f"; the model stays {model}" if model and written.model not in ("", model) else ""
        self.say(f"applied{kept}")

    @shows_errors
    def _cancel(self, _button: Any) -> None:
        self._editor.layout.display = "none"
        self.say("")

    def _chosen_path(self) -> Path:
        if not self.path.value.strip():
            raise RecipeError("no file is named", fix="write a path, such as recipe.yaml")
        return Path(self.path.value.strip()).expanduser()

    # ---- the recipe becomes what the user sees

    @shows_errors
    def _recipe_changed(self, _change: Any = None) -> None:
        self._show_recipe()

    def _show_recipe(self) -> None:
        recipe = self.recipe
        with self.showing():
            self._plain.show(recipe)
            self._weights.show(recipe.weights)
            self._kv_cache.show(recipe.kv_cache)
            self._build.show(recipe.build)
        own = len(getattr(recipe.weights, "alpha_by_group", ()))
        self._own_alphas.value = (
            f'<span class="wb-about">{own} smoothing group{"s have an alpha" if own > 1 else " has an alpha"} of '
            f"{'their' if own > 1 else 'its'} own (the alpha panel shows and resets them)</span>"
            if own
            else ""
        )

    @shows_errors
    def _facts_changed(self, _change: Any = None) -> None:
        self._facts.value = model_facts(self.state)


class KindBox(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A part of the recipe that comes in kinds: a menu of them, and the fields of the one that is chosen.

    What was last shown of a kind is remembered: going to another kind and back loses nothing.

    Args:
        part: the recipe's field.
        kinds: dataclasses by name.
        chosen: told the part's name and value when another kind is chosen.
        changed: told the part's name, a field's name and its value.
    """

    def __init__(
        self,
        part: str,
        kinds: Mapping[str, type[Any]],
        chosen: Callable[[str, Any], None],
        changed: Callable[[str, str, Any], None],
    ) -> None:
        self._part, self._chosen = part, chosen
        self._last: dict[str, Any] = {kind: owner() for kind, owner in kinds.items()}
        self.kind = ipywidgets.Dropdown(
            options=[(KIND_NAMES[name] if part == "weights" else name, name) for name in (NONE, *kinds)],
            description=part,
            style=_LABEL,
            layout={"width": "500px"},
            tooltip="how linear layers are quantized" if part == "weights" else "how keys and values are stored",
        )
        self.boxes = {
            kind: FieldsBox(owner, lambda name, value: changed(part, name, value)) for kind, owner in kinds.items()
        }
        for box in self.boxes.values():
            box.add_class("wb-nested")
        self.kind.observe(self._on_kind, "value")
        super().__init__([self.kind])

    def show(self, value: Any) -> None:
        """Show one value of the part; None for not quantized."""
        self.kind.value = NONE if value is None else value.kind
        if value is None:
            self.children = [self.kind]
            return
        self._last[value.kind] = value
        box = self.boxes[value.kind]
        box.show(value)
        self.children = [self.kind, box]

    def close(self) -> None:
        """Take the widgets away, those of kinds that are not shown too."""
        for box in getattr(self, "boxes", {}).values():
            close_tree(box)
        close_parts(self)
        super().close()

    def _on_kind(self, change: Any) -> None:
        self._chosen(self._part, self._last.get(change["new"]))


def _require_recipe(path: Path) -> None:
    """What is no recipe is not written over.

    Raises:
        RecipeError: it is none.
    """
    try:
        Recipe.load(path)
    except RecipeError as error:
        raise RecipeError(f"{path} is there and is no recipe", fix="give another path, or remove it") from error


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested choices as rows: ``weights.alpha`` and its value."""
    rows: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
