"""The recipe as text, as it changes: its YAML, and the command line that means the same. Changes nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd

from workbench.bench.state import BenchState
from workbench.recipe import Recipe
from workbench.ui.panel import Panel, shows_errors
from workbench.ui.text_view import TextView

# Columns of a line of the command; longer lists of words go on in the next one.
_COLUMNS = 76
_CONTINUED = " \\\n"


class RecipeText(Panel):
    """YAML and command line of a state's recipe, side by side, for copying; what changed last is marked.

    Args:
        state: whose recipe.

    Attributes:
        yaml: the recipe's YAML as it is shown.
        command: the command line as it is shown.
    """

    def __init__(self, state: BenchState) -> None:
        self.state = state
        self._yaml = TextView("Recipe (YAML)", layout={"flex": "1 1 420px", "min_width": "280px"})
        self._command = TextView("The same as a command", layout={"flex": "1 1 560px", "min_width": "280px"})
        both = ipywidgets.HBox([self._yaml, self._command], layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        super().__init__([both], "wb-recipe-text")
        self.watch(state, self._recipe_changed, "recipe", "calibration")
        self._put(*_texts(state))

    @property
    def yaml(self) -> str:
        return str(self._yaml.text)

    @property
    def command(self) -> str:
        return str(self._command.text)

    @property
    def frame(self) -> pd.DataFrame:
        """One row: ``yaml`` and ``command``."""
        return pd.DataFrame([{"yaml": self.yaml, "command": self.command}])

    def __repr__(self) -> str:
        return f"RecipeText({' '.join(self.command.replace(_CONTINUED, ' ').split())})"

    @shows_errors
    def _recipe_changed(self, _change: Any) -> None:
        # Writing YAML takes tens of milliseconds where every layer has an alpha; a slider must not wait for it.
        self.compute(lambda: _texts(self.state), lambda texts: self._put(*texts))

    def _put(self, yaml: str, command: str) -> None:
        self._yaml.text, self._command.text = yaml, command


def command_line(recipe: Recipe, ranges: str | Path | None = None) -> str:
    """The ``workbench convert`` that means a recipe, in lines that a shell takes as one.

    Args:
        recipe: the choices.
        ranges: the folder of the calibration that it is to use; None lets the command calibrate where it must.

    Returns:
        The command; MODEL and CHECKPOINT stand for folders that nobody has named.
    """
    model = [] if recipe.model else ["--model_dir", "MODEL"]
    seen = [] if ranges is None else ["--ranges", str(ranges)]
    lines, line = [], ""
    for word in ["workbench", "convert", *model, *recipe.to_cli(), *seen, "--output_dir", "CHECKPOINT"]:
        quoted = shlex.quote(word)
        if line and (word.startswith("--") or len(line) + 1 + len(quoted) > _COLUMNS):
            lines.append(line)
            line = "    " + quoted if word.startswith("--") else "        " + quoted
        else:
            line = f"{line} {quoted}" if line else quoted
    return _CONTINUED.join([*lines, line])


def _texts(state: BenchState) -> tuple[str, str]:
    recipe, calibration = state.recipe, state.calibration
    folder = calibration.folder if calibration is not None and _needs_ranges(recipe) else None
    return recipe.to_yaml(), command_line(recipe, folder)


def _needs_ranges(recipe: Recipe) -> bool:
    from workbench.quantization.convert import ranges_needed_for

    return ranges_needed_for(recipe) is not None
