from __future__ import annotations

import pytest

from workbench.bench.alpha_book import AlphaBook
from workbench.bench.state import BenchState, Calibration
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int4WeightOnly, Recipe, SmoothQuant
from workbench.ui.alpha_notes import (
    about_errors,
    about_recipe,
    row_error,
    row_note,
    what_is_missing,
    why_no_picture,
)

HOW = SmoothQuant(groups=("qkv", "down"), alpha_by_group={"layers.1.down": 0.5})


def test_what_the_error_is_and_who_judges(random_search: AlphaSearch) -> None:
    text = about_errors(random_search, can_judge=False)
    assert "relative L2 distance" in text
    assert "256 held-out rows" in text
    assert "KL" in text
    assert "button" not in text
    assert "the button below" in about_errors(random_search, can_judge=True)


def test_a_recipe_that_does_not_smooth_is_named() -> None:
    assert about_recipe(BenchState(Recipe(weights=SmoothQuant()))) == ""
    assert "quantizes weights as int4: nothing is smoothed yet" in about_recipe(
        BenchState(Recipe(weights=Int4WeightOnly()))
    )
    assert "quantizes no weights" in about_recipe(BenchState())


@pytest.mark.parametrize(
    ("layer", "group", "locked", "note"),
    [
        (1, "down", False, "its own"),
        (1, "down", True, "its own, locked"),
        (0, "down", False, "as all groups"),
        (0, "o", False, "not smoothed"),
        (0, "o", True, "not smoothed, locked"),
    ],
)
def test_where_an_alpha_comes_from(layer: int, group: str, locked: bool, note: str) -> None:
    state = BenchState(Recipe(weights=HOW))
    if locked:
        state.locked = frozenset({f"layers.{layer}.{group}"})
    assert row_note(state, layer, group) == note


def test_a_group_that_is_kept_has_no_integers(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=HOW, keep=("lm_head", "layers.*.mlp.down")), search=random_search)
    book = AlphaBook(random_search)
    assert row_note(state, 1, "down") == "kept in float16"
    assert row_error(state, book, 1, "down") == "0 %: no integers"
    assert row_error(state, book, 1, "qkv") == "not measured"
    assert row_error(state, None, 1, "down") == ""
    assert why_no_picture(state, "layers.1.down", computing=False).startswith("layers.1.down is kept in float16")
    assert why_no_picture(state, "layers.1.qkv", computing=True) == "layers.1.qkv: computing its error"


def test_what_is_missing_and_what_to_do(random_search: AlphaSearch) -> None:
    state = BenchState()
    assert "give AlphaPanel(search) an AlphaSearch" in what_is_missing(state)
    ranges: ActivationRanges = random_search.ranges
    state.calibration = Calibration("my text, 4 x 12", ranges)
    assert "the calibration (my text, 4 x 12) kept no held-out rows: calibrate with samples" in what_is_missing(state)
