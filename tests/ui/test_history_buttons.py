from __future__ import annotations

from typing import Any

import pytest

from workbench.bench.state import BenchState
from workbench.ui.history_buttons import HistoryButtons
from workbench.ui.panel import Panel


@pytest.fixture
def state() -> BenchState:
    return BenchState()


@pytest.fixture
def panel() -> Panel:
    return Panel([])


def test_buttons_are_grey_where_there_is_nothing_to_do(state: BenchState, panel: Panel) -> None:
    buttons = HistoryButtons(state, panel)
    assert (buttons.undo_button.disabled, buttons.redo_button.disabled) == (True, True)
    state.set_alpha(0.5)
    assert (buttons.undo_button.disabled, buttons.redo_button.disabled) == (False, True)
    assert "(1 to take back)" in buttons.undo_button.tooltip
    buttons.undo_button.click()
    assert state.smoothing is None
    assert (buttons.undo_button.disabled, buttons.redo_button.disabled) == (True, False)
    buttons.redo_button.click()
    assert state.smoothing is not None
    assert (buttons.undo_button.disabled, buttons.redo_button.disabled) == (False, True)


def test_an_error_shows_in_the_panel(state: BenchState, panel: Panel) -> None:
    def fail(_change: Any) -> None:
        raise RuntimeError("no <ink>")

    buttons = HistoryButtons(state, panel)
    state.set_alpha(0.5)
    state.observe(fail, "recipe")
    buttons.undo_button.click()
    assert "RuntimeError: no &lt;ink&gt;" in panel.status
    panel.say("")
    buttons.redo_button.click()
    assert "RuntimeError" in panel.status


def test_a_closed_panel_leaves_them_as_they_are(state: BenchState, panel: Panel) -> None:
    buttons = HistoryButtons(state, panel)
    panel.close()
    state.set_alpha(0.5)
    assert buttons.undo_button.disabled
