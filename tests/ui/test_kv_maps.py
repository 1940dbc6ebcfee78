"""The maps tell which head of which layer was chosen."""

from __future__ import annotations

import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.ui.kv_maps import KVMaps


@pytest.fixture
def chosen():
    return []


@pytest.fixture
def maps(chosen):
    maps = KVMaps(lambda *place: chosen.append(place))
    maps.show(make_ranges(SMALL, spoil={"layers.1.key": 20.0}))
    return maps


def test_rows_are_heads_and_columns_layers(maps):
    cells = maps.cells["key"]
    assert (cells.rows, cells.columns) == (["0", "1"], ["0", "1"])
    assert cells.texts[1].startswith("layer 1, KV head 0: largest K 2")
    assert len(cells.texts) == len(cells.colors) == 4
    assert "largest magnitude" in maps.legends["value"].value
    assert maps.cells["value"].texts[1].startswith("layer 1, KV head 0: largest V 1.2")


def test_a_cell_tells_its_place(maps, chosen):
    maps.cells["value"].selected = [1, 0]
    assert chosen == [("value", 0, 1)]


def test_selecting_marks_both_maps_and_none(maps):
    maps.select(1, 0)
    assert maps.cells["key"].selected == maps.cells["value"].selected == [0, 1]
    maps.select(1, None)
    assert maps.cells["key"].selected == [-1, -1]
    maps.select(7, 0)
    assert maps.cells["key"].selected == [-1, -1]
