"""A menu of the models that a bench can open: Hugging Face, the recipe, what was made before, any folder."""

from __future__ import annotations

from typing import Any

import ipywidgets
import traitlets

from workbench.bench.bench import Bench
from workbench.bench.models import HUGGING_FACE, ModelChoice, describe
from workbench.recipe import Recipe

FOLDER = "a folder ..."


class ModelChooser(ipywidgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """A menu, and a field for a folder's name.

    Args:
        bench: whose models are offered.
        label: what the model is for, before the menu.
        choice: to begin with.

    Attributes:
        choice: what is chosen (:data:`workbench.bench.models.ModelChoice`); assigning it moves the menu.
    """

    choice = traitlets.Any(HUGGING_FACE)

    def __init__(self, bench: Bench, label: str, choice: ModelChoice = HUGGING_FACE) -> None:
        self._bench = bench
        self._given: dict[str, ModelChoice] = {}
        self._offered: dict[str, ModelChoice] = {}
        self._moving = False
        self.menu = ipywidgets.Dropdown(
            description=label, style={"description_width": "initial"}, layout={"width": "400px"}
        )
        self.folder = ipywidgets.Text(
            placeholder="of a checkpoint or an engine",
            description="Folder",
            style={"description_width": "initial"},
            layout={"width": "380px"},
            continuous_update=False,
            tooltip="the folder that 'workbench convert' or 'workbench build' wrote",
        )
        super().__init__([self.menu, self.folder], layout={"flex_flow": "row wrap"})
        self.add_class("wb-model-chooser")
        self.menu.observe(self._on_menu, "value")
        self.folder.observe(self._on_folder, "value")
        self._offer()
        self.choice = choice
        self.refresh()

    def refresh(self) -> None:
        """Offer what is at hand now; what is chosen stays, even where it is no longer at hand."""
        self._offer()
        self._place(self.choice)

    def _on_menu(self, change: Any) -> None:
        self.folder.layout.display = "" if change["new"] == FOLDER else "none"
        if not self._moving and change["new"] is not None:
            self.choice = self.folder.value if change["new"] == FOLDER else self._offered[change["new"]]

    def _on_folder(self, change: Any) -> None:
        if not self._moving:
            self.choice = change["new"]

    @traitlets.observe("choice")
    def _choice_changed(self, change: Any) -> None:
        self._place(change["new"])

    def _offer(self) -> None:
        """Fill the menu."""
        self._offered = {**self._bench.models.choices(), **self._given}
        self._move(next(iter(self._offered)), options=[*self._offered, FOLDER])

    def _place(self, choice: ModelChoice) -> None:
        """Move the menu to a choice; a recipe that it lacks is added to it."""
        name = self._name_of(choice)
        if name is None and isinstance(choice, Recipe):
            name = describe(choice)
            while name in self._offered:
                name += ", another one"
            self._given[name] = choice
            self._offer()
        if name is None:
            self._move(FOLDER, folder=str(choice))
        else:
            self._move(name)

    def _name_of(self, choice: ModelChoice) -> str | None:
        return next(
            (name for name, known in self._offered.items() if known == choice and (known is None) == (choice is None)),
            None,
        )

    def _move(self, name: str, *, folder: str | None = None, options: list[str] | None = None) -> None:
        """Set the widgets, which is no doing of the user's."""
        self._moving = True
        try:
            if options is not None and list(self.menu.options) != options:
                self.menu.options = options
            if folder is not None:
                self.folder.value = folder
            self.menu.value = name
        finally:
            self._moving = False
        self.folder.layout.display = "" if name == FOLDER else "none"
