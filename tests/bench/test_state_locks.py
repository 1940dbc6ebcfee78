"""Groups that are left alone: locked ones keep their alpha, kept ones have no integers."""

from __future__ import annotations

import pytest

from tests.bench.alphas_of_groups import own_alphas
from workbench.bench.state import BenchState, kept_groups
from workbench.errors import RecipeError
from workbench.recipe import Int4WeightOnly, Recipe, SmoothQuant


@pytest.fixture
def state() -> BenchState:
    return BenchState(Recipe(weights=SmoothQuant()))


def test_only_locked_groups_change_nothing_not_even_the_kind() -> None:
    state = BenchState(Recipe(weights=Int4WeightOnly(32)))
    state.lock("layers.0.o")
    state.set_alphas({"layers.0.o": 0.3})
    assert state.recipe.weights == Int4WeightOnly(32)
    assert state.undo_steps == 0


def test_a_locked_group_is_not_set_until_it_is_unlocked(state: BenchState) -> None:
    state.lock("layers.0.down")
    with pytest.raises(RecipeError, match=r"^layers\.0\.down is locked; unlock it first: unlock\('layers\.0\.down'\)"):
        state.set_alpha(0.3, "layers.0.down")
    assert own_alphas(state) == {"layers.0.down": 0.85}
    state.unlock("layers.0.down")
    state.set_alpha(0.3, "layers.0.down")
    assert own_alphas(state) == {"layers.0.down": 0.3}


def test_undo_takes_a_locked_groups_alpha_along_and_leaves_the_lock(state: BenchState) -> None:
    state.lock("layers.0.down")
    state.undo()
    assert (own_alphas(state), state.locked) == ({}, {"layers.0.down"})
    state.set_alpha(0.3)  # the lock holds even so
    assert state.smoothing == SmoothQuant(alpha=0.3, alpha_by_group={"layers.0.down": 0.85})


def test_what_is_no_group_is_not_locked(state: BenchState) -> None:
    with pytest.raises(RecipeError, match=r"smoothing group 'layers\.0\.mlp'"):
        state.lock("layers.0.mlp")
    assert state.locked == frozenset()


def test_kept_groups_are_those_that_have_no_integers() -> None:
    keep = ("lm_head", "layers.*.mlp.down", "layers.1.attention.o")
    recipe = Recipe(weights=SmoothQuant(), keep=keep)
    assert kept_groups(recipe, 2) == {"layers.0.down", "layers.1.down", "layers.1.o"}
    assert kept_groups(Recipe(), 2) == frozenset()
