"""Undo and redo of a state's recipe, as two buttons of a panel."""

from __future__ import annotations

from typing import Any

import ipywidgets

from workbench.bench.state import BenchState
from workbench.ui.panel import Panel


class HistoryButtons(ipywidgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """Two buttons that are greyed where there is nothing to take back or to bring back.

    Args:
        state: whose recipe.
        panel: whose status line shows errors; the buttons stop watching the state when it is closed.
    """

    def __init__(self, state: BenchState, panel: Panel) -> None:
        self._state, self._panel = state, panel
        self.undo_button = ipywidgets.Button(description="Undo", icon="undo", layout={"width": "92px"})
        self.redo_button = ipywidgets.Button(description="Redo", icon="repeat", layout={"width": "92px"})
        self.undo_button.on_click(self._undo)
        self.redo_button.on_click(self._redo)
        super().__init__([self.undo_button, self.redo_button])
        self.add_class("wb-history")
        panel.watch(state, self._show, "undo_steps", "redo_steps")
        self._show()

    def _undo(self, _button: Any) -> None:
        with self._panel.guard():
            self._state.undo()

    def _redo(self, _button: Any) -> None:
        with self._panel.guard():
            self._state.redo()

    def _show(self, _change: Any = None) -> None:
        steps, back = self._state.undo_steps, self._state.redo_steps
        self.undo_button.disabled, self.redo_button.disabled = steps == 0, back == 0
        self.undo_button.tooltip = f"take the last change of the recipe back ({steps} to take back)"
        self.redo_button.tooltip = f"bring the change back that was undone last ({back} to bring back)"
