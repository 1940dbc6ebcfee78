from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation.palette import MISSING
from workbench.ui.alpha_map import AlphaMap

ALPHAS = np.array([[0.0, 0.5, np.nan], [1.0, 0.5, 0.5], [0.2, 0.3, 0.4], [0.9, 0.9, 0.9]])


@pytest.fixture
def chosen() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def alpha_map(chosen: list[tuple[int, str]]) -> AlphaMap:
    return AlphaMap(lambda layer, group: chosen.append((layer, group)), lambda: None)


def test_cells_say_what_they_are(alpha_map: AlphaMap) -> None:
    alpha_map.show(ALPHAS, {(1, "o")})
    cells = alpha_map.cells
    assert (cells.rows, cells.columns) == (["qkv", "o", "gate_up", "down"], ["0", "1", "2"])
    assert cells.texts[0] == "layers.0.qkv: alpha 0.00"
    assert cells.texts[2] == "layers.2.qkv: not smoothed"
    assert cells.texts[4] == "layers.1.o: alpha 0.50, locked"
    assert [index for index, mark in enumerate(cells.marks) if mark] == [4]
    assert "locked" in alpha_map.legend.value
    assert cells.colors[2] == MISSING


def test_the_colours_of_alphas_do_not_depend_on_the_others(alpha_map: AlphaMap) -> None:
    alpha_map.show(ALPHAS, ())
    half = alpha_map.cells.colors[1]
    alpha_map.show(np.full((4, 3), 0.5), ())
    assert set(alpha_map.cells.colors) == {half}
    assert "locked" not in alpha_map.legend.value


def test_errors_that_are_missing_can_be_asked_for(alpha_map: AlphaMap) -> None:
    alpha_map.show(ALPHAS, ())
    assert alpha_map.measure_button.layout.display == "none"
    alpha_map.shows.value = "error"
    alpha_map.show(ALPHAS / 10, ())
    assert alpha_map.measure_button.layout.display == ""
    assert alpha_map.cells.texts[2] == "layers.2.qkv: not measured"
    assert alpha_map.cells.texts[4] == "layers.1.o: output error, relative L2 5.000%"
    assert alpha_map.cells.label == "output error, relative L2"
    alpha_map.show(np.full((4, 3), 0.1), ())
    assert alpha_map.measure_button.layout.display == "none"


def test_a_chosen_cell_is_a_group(alpha_map: AlphaMap, chosen: list[tuple[int, str]]) -> None:
    alpha_map.cells.selected = [3, 1]
    alpha_map.cells.selected = [-1, -1]
    assert chosen == [(1, "down")]
    alpha_map.select(2, "o")
    assert alpha_map.cells.selected == [1, 2]
