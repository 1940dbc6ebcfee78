from __future__ import annotations

import pytest
import traitlets

from workbench.ui.heat_map import CELL_MARKS, HeatMap


def test_source_and_style_are_found():
    heat_map = HeatMap()
    assert "export default" in heat_map._esm
    assert ".wb-heat" in heat_map._css


def test_selected_is_a_row_and_a_column():
    heat_map = HeatMap(rows=["a"], columns=["0", "1"])
    assert heat_map.selected == [-1, -1]
    with pytest.raises(traitlets.TraitError):
        heat_map.selected = [1]


def test_every_mark_has_a_look():
    heat_map = HeatMap(rows=["a"], columns=["0"], marks=["dot"])
    for mark in CELL_MARKS:
        assert not mark or f'data-mark="{mark}"' in heat_map._css
    with pytest.raises(traitlets.TraitError):
        heat_map.marks = ["star"]
