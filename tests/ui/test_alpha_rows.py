from __future__ import annotations

from typing import Any

import pytest

from workbench.ui.alpha_rows import GroupRow, RowCallbacks, RowView, rows_heading


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def row(told: list[Any]) -> GroupRow:
    def tell(what: str) -> Any:
        return lambda *args: told.append((what, *args))

    return GroupRow("down", RowCallbacks(tell("chosen"), tell("moved"), tell("locked"), tell("reset")))


def test_what_is_done_is_told(row: GroupRow, told: list[Any]) -> None:
    row.name.click()
    row.slider.value = 0.4
    row.lock.value = True
    row.reset.click()
    assert told == [("chosen", "down"), ("moved", "down", 0.4), ("locked", "down", True), ("reset", "down")]


def test_what_is_shown(row: GroupRow) -> None:
    row.show(RowView(0.3, "its own", own=True, locked=False, active=True))
    assert (row.slider.value, row.slider.disabled, row.reset.disabled, row.lock.value) == (0.3, False, False, False)
    assert "its own" in row.note.value
    assert row.name.button_style == "info"
    row.show(RowView(0.3, "its own, locked", own=True, locked=True, active=False))
    assert (row.slider.disabled, row.reset.disabled, row.lock.value, row.lock.icon) == (True, True, True, "lock")
    row.show(RowView(0.85, "as all groups", own=False, locked=False, active=False))
    assert (row.slider.disabled, row.reset.disabled, row.lock.icon, row.name.button_style) == (
        False,
        True,
        "unlock",
        "",
    )
    row.show_error("2 % <of> it")
    assert "2 % &lt;of&gt; it" in row.error.value


def test_the_heading_says_what_each_end_of_alpha_flattens() -> None:
    assert "0 flattens the weights, 1 the activations" in rows_heading().children[1].value


def test_everything_says_what_it_does(row: GroupRow) -> None:
    assert all(widget.tooltip for widget in (row.name, row.slider, row.lock, row.reset))
