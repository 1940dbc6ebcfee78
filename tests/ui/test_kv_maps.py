"""The maps tell which head of which layer was chosen."""

from __future__ import annotations

import numpy as np
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


def test_values_are_shown_after_smoothing_on_demand(maps):
    value, before = maps.cells["value"], maps.cells["value"].texts
    assert maps.after.layout.display == "none"
    maps.show_smoothed([None, None])
    assert maps.after.layout.display == "none"
    maps.show_smoothed([None, np.array([405.0, 2.0])])
    assert maps.after.layout.display == ""
    assert value.texts == before
    maps.after.value = True
    assert value.texts == before  # whoever holds the maps says when they are drawn
    maps.show_values()
    assert value.texts[1] == "layer 1, KV head 0: largest V 405"
    assert value.texts[0] == before[0]  # what smoothing leaves alone stays
    assert value.label == "largest magnitude of values, after smoothing"
    assert maps.cells["key"].label == "largest magnitude of keys, after RoPE, as calibrated"
    assert "405" in maps.legends["value"].value
    maps.show_smoothed([None, None])  # the recipe smooths no longer
    assert value.texts == before


def test_rows_are_named(maps):
    assert all(cells.names_rows and cells.axes[0] == "KV head" for cells in maps.cells.values())


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
