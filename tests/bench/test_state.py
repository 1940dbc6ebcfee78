"""The state that panels share: one act is one step to undo, threads lose nothing, locked groups keep their alpha."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import traitlets

from tests.bench.alphas_of_groups import own_alphas
from workbench.bench import state as state_module
from workbench.bench.state import UNDO_STEPS, BenchState, group_name, groups_of, split_group
from workbench.errors import RecipeError
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(state_module, "time", clock)
    return clock


@pytest.fixture
def state() -> BenchState:
    return BenchState(Recipe(weights=SmoothQuant()))


def test_a_new_state_has_the_defaults_and_nothing_to_undo() -> None:
    state = BenchState()
    assert state.recipe == Recipe()
    assert (state.selected, state.locked, state.calibration, state.search, state.kv_study) == (
        "",
        frozenset(),
        None,
        None,
        None,
    )
    assert (state.undo_steps, state.redo_steps) == (0, 0)
    state.undo()
    state.redo()
    assert state.recipe == Recipe()


def test_two_states_share_nothing() -> None:
    one, other = BenchState(), BenchState()
    one.locked = frozenset({"layers.0.o"})
    one.recipe = Recipe(dtype="bfloat16")
    assert (other.locked, other.recipe, other.undo_steps) == (frozenset(), Recipe(), 0)
    assert one.jobs is not other.jobs


def test_an_assigned_recipe_is_heard_of_and_undone(state: BenchState) -> None:
    heard: list[Recipe] = []
    state.observe(lambda change: heard.append(change["new"]), "recipe")
    before, after = state.recipe, Recipe(dtype="bfloat16")
    state.recipe = after
    state.undo()
    state.redo()
    assert heard == [after, before, after]


def test_undo_and_redo_count_their_steps(state: BenchState) -> None:
    recipes = [state.recipe]
    for dtype in ("bfloat16", "float32"):
        state.change(lambda recipe, dtype=dtype: replace(recipe, dtype=dtype))
        recipes.append(state.recipe)
    assert (state.undo_steps, state.redo_steps) == (2, 0)
    state.undo()
    assert (state.recipe, state.undo_steps, state.redo_steps) == (recipes[1], 1, 1)
    state.undo()
    state.undo()
    assert (state.recipe, state.undo_steps, state.redo_steps) == (recipes[0], 0, 2)
    state.redo()
    state.redo()
    state.redo()
    assert (state.recipe, state.undo_steps, state.redo_steps) == (recipes[2], 2, 0)


def test_a_change_after_an_undo_forgets_what_could_be_brought_back(state: BenchState) -> None:
    state.set_alpha(0.5)
    state.undo()
    state.set_kv_cache(Int8KVCache())
    assert state.redo_steps == 0
    state.redo()
    assert state.recipe == Recipe(weights=SmoothQuant(), kv_cache=Int8KVCache())


def test_a_change_that_changes_nothing_is_no_step(state: BenchState) -> None:
    state.change(lambda recipe: replace(recipe))
    state.set_alpha(0.85)
    state.recipe = Recipe(weights=SmoothQuant())
    assert state.undo_steps == 0


def test_the_oldest_steps_are_forgotten(state: BenchState) -> None:
    for number in range(UNDO_STEPS + 20):
        state.set_alpha((number + 1) / 1000, f"layers.{number}.o")
    assert state.undo_steps == UNDO_STEPS
    for _ in range(UNDO_STEPS + 20):
        state.undo()
    assert len(own_alphas(state)) == 20


def test_a_slider_on_its_way_is_one_step(state: BenchState, clock: Clock) -> None:
    for alpha in (0.8, 0.7, 0.6):
        clock.seconds += 0.9  # each within a second of the one before
        state.set_alpha(alpha, "layers.1.down")
    assert state.undo_steps == 1
    state.undo()
    assert own_alphas(state) == {}
    state.redo()
    assert own_alphas(state) == {"layers.1.down": 0.6}


def test_two_moves_with_a_rest_between_them_are_two_steps(state: BenchState, clock: Clock) -> None:
    state.set_alpha(0.8, "layers.1.down")
    clock.seconds += 1.1
    state.set_alpha(0.7, "layers.1.down")
    state.undo()
    assert own_alphas(state) == {"layers.1.down": 0.8}


@pytest.mark.usefixtures("clock")
def test_moves_of_two_sliders_are_two_steps(state: BenchState) -> None:
    state.set_alpha(0.8, "layers.1.down")
    state.set_alpha(0.7, "layers.0.down")
    state.set_alpha(0.6)
    assert state.undo_steps == 3
    state.undo()
    assert state.smoothing == SmoothQuant(alpha_by_group={"layers.0.down": 0.7, "layers.1.down": 0.8})


@pytest.mark.usefixtures("clock")
def test_a_move_after_an_undo_is_a_step_of_its_own(state: BenchState) -> None:
    state.set_alpha(0.8)
    state.set_alpha(0.7)
    state.undo()
    state.set_alpha(0.6)
    assert (state.undo_steps, state.redo_steps) == (1, 0)
    state.undo()
    assert state.smoothing == SmoothQuant()


@pytest.mark.usefixtures("clock")
def test_assignments_are_never_run_together(state: BenchState) -> None:
    state.recipe = Recipe(dtype="bfloat16")
    state.recipe = Recipe(dtype="float32")
    assert state.undo_steps == 2


def test_long_work_is_one_step_however_long_it_takes(state: BenchState, clock: Clock) -> None:
    for number in range(3):
        clock.seconds += 100
        state.set_alphas({f"layers.{number}.o": 0.5}, "tune 1", within_s=math.inf)
    assert state.undo_steps == 1
    state.undo()
    assert own_alphas(state) == {}


@pytest.mark.usefixtures("clock")
def test_what_a_person_does_during_long_work_is_a_step_of_its_own(state: BenchState) -> None:
    state.set_alphas({"layers.0.o": 0.5}, "tune 1", within_s=math.inf)
    state.set_alpha(0.9)
    state.set_alphas({"layers.1.o": 0.6}, "tune 1", within_s=math.inf)
    assert state.undo_steps == 3
    state.undo()
    assert state.smoothing == SmoothQuant(alpha=0.9, alpha_by_group={"layers.0.o": 0.5})


def test_an_illegal_recipe_is_not_taken(state: BenchState) -> None:
    before = state.recipe
    with pytest.raises(RecipeError, match=r"weights\.alpha is 1\.5; allowed: 0 to 1"):
        state.set_alpha(1.5)
    with pytest.raises(RecipeError, match="dtype is 'int3'"):
        state.change(lambda recipe: replace(recipe, dtype="int3"))
    with pytest.raises(traitlets.TraitError):
        state.recipe = "float16"  # type: ignore[assignment]
    assert (state.recipe, state.undo_steps) == (before, 0)
    state.set_alpha(0.5)
    assert state.undo_steps == 1


def test_a_failing_observer_leaves_a_state_that_works(state: BenchState) -> None:
    def fail(_change: Any) -> None:
        raise RuntimeError("a panel broke")

    state.observe(fail, "recipe")
    with pytest.raises(RuntimeError, match="a panel broke"):
        state.set_alpha(0.5)
    with pytest.raises(RuntimeError, match="a panel broke"):
        state.undo()
    assert (state.undo_steps, state.redo_steps) == (0, 1)
    state.unobserve(fail, "recipe")
    state.set_alpha(0.6, "layers.0.o")
    state.recipe = Recipe()
    state.undo()
    assert own_alphas(state) == {"layers.0.o": 0.6}


def test_one_group_gets_an_alpha_of_its_own_and_loses_it(state: BenchState) -> None:
    state.set_alpha(0.5, "layers.1.down")
    state.set_alpha(0.7)
    assert state.smoothing == SmoothQuant(alpha=0.7, alpha_by_group={"layers.1.down": 0.5})
    state.reset_alphas(["layers.1.down", "layers.0.o"])
    assert state.smoothing == SmoothQuant(alpha=0.7)


def test_own_alphas_stand_in_the_order_of_the_layers(state: BenchState) -> None:
    state.set_alphas({"layers.10.o": 0.1, "layers.2.down": 0.2, "layers.2.qkv": 0.3})
    state.set_alpha(0.4, "layers.0.gate_up")
    assert list(own_alphas(state)) == ["layers.0.gate_up", "layers.2.qkv", "layers.2.down", "layers.10.o"]


def test_reset_takes_all_groups_back_but_the_locked(state: BenchState) -> None:
    state.set_alphas({"layers.0.o": 0.1, "layers.1.o": 0.2, "layers.1.qkv": 0.3})
    state.lock("layers.1.o")
    state.reset_alphas()
    assert own_alphas(state) == {"layers.1.o": 0.2}
    state.reset_alphas(["layers.1.o"])
    assert own_alphas(state) == {"layers.1.o": 0.2}
    state.unlock("layers.1.o")
    state.reset_alphas()
    assert own_alphas(state) == {}


def test_a_lock_pins_the_alpha_of_now(state: BenchState) -> None:
    state.set_alpha(0.7)
    state.lock("layers.0.qkv")
    state.set_alpha(0.3)
    state.set_alphas({"layers.0.qkv": 0.1, "layers.0.o": 0.2})
    assert state.locked == {"layers.0.qkv"}
    assert own_alphas(state) == {"layers.0.qkv": 0.7, "layers.0.o": 0.2}


def test_a_group_that_is_not_smoothed_is_locked_as_it_is() -> None:
    state = BenchState(Recipe(weights=SmoothQuant(groups=("qkv",))))
    state.lock("layers.0.o")
    plain = BenchState(Recipe(weights=Int8WeightOnly()))
    plain.lock("layers.0.o")
    assert state.smoothing == SmoothQuant(groups=("qkv",))
    assert plain.recipe == Recipe(weights=Int8WeightOnly())
    assert state.locked == plain.locked == {"layers.0.o"}


@pytest.mark.parametrize("weights", [None, Int8WeightOnly(), Int4WeightOnly(32)])
def test_an_alpha_makes_the_recipe_smoothquant(weights: Any) -> None:
    state = BenchState(Recipe(weights=weights))
    assert state.smoothing is None
    state.reset_alphas()
    assert state.recipe.weights == weights
    state.set_alpha(0.5, "layers.1.o")
    assert state.recipe.weights == SmoothQuant(alpha_by_group={"layers.1.o": 0.5})
    state.undo()
    assert state.recipe.weights == weights
    state.set_alpha(0.6)
    assert state.recipe.weights == SmoothQuant(alpha=0.6)


def test_an_alpha_of_a_group_that_was_not_smoothed_smooths_it() -> None:
    state = BenchState(Recipe(weights=SmoothQuant(groups=("down",))))
    state.set_alpha(0.5, "layers.1.qkv")
    assert state.smoothing == SmoothQuant(groups=("qkv", "down"), alpha_by_group={"layers.1.qkv": 0.5})


@pytest.mark.parametrize("name", ["layers.1", "layers.x.o", "o", "layers.1.mlp.down", "layers.1.gate"])
def test_what_is_no_group_is_refused_in_words(state: BenchState, name: str) -> None:
    with pytest.raises(RecipeError, match=r"smoothing group .*; allowed: layers\.N\.GROUP, GROUP one of qkv, o"):
        state.set_alpha(0.5, name)
    with pytest.raises(RecipeError, match="smoothing group"):
        split_group(name)
    assert state.undo_steps == 0


def test_threads_that_change_different_groups_lose_nothing(state: BenchState) -> None:
    together = threading.Barrier(6)

    def change(layer: int) -> None:
        together.wait(10)
        for step in range(30):
            state.set_alpha(step / 100, f"layers.{layer}.o")

    threads = [threading.Thread(target=change, args=(layer,)) for layer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert own_alphas(state) == {f"layers.{layer}.o": 0.29 for layer in range(6)}


def test_undo_in_one_thread_and_changes_in_another_leave_a_whole_history(state: BenchState) -> None:
    def change() -> None:
        for step in range(60):
            state.set_alpha(step / 100, f"layers.{step}.o")

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(60):
        state.undo()
        state.redo()
    thread.join(30)
    steps, recipe = state.undo_steps, state.recipe
    for _ in range(steps):
        state.undo()
    assert (state.undo_steps, state.recipe) == (0, Recipe(weights=SmoothQuant()))
    for _ in range(steps):
        state.redo()
    assert state.recipe == recipe


def test_names_of_groups() -> None:
    assert group_name(12, "down") == "layers.12.down"
    assert split_group("layers.12.down") == (12, "down")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.1", [(1, "qkv"), (1, "o"), (1, "gate_up"), (1, "down")]),
        ("layers.1.attention", [(1, "qkv"), (1, "o")]),
        ("layers.1.mlp", [(1, "gate_up"), (1, "down")]),
        ("layers.1.mlp.down", [(1, "down")]),
        ("layers.1.down", [(1, "down")]),
        ("layers.1.", [(1, "qkv"), (1, "o"), (1, "gate_up"), (1, "down")]),
    ],
)
def test_a_name_means_its_groups(name: str, expected: list[tuple[int, str]]) -> None:
    assert groups_of(name, 12) == expected


def test_no_name_means_all_groups() -> None:
    assert len(groups_of("", 3)) == 12
    assert groups_of("", 3)[4] == (1, "qkv")
    assert groups_of("layers", 3) == groups_of("", 3)


@pytest.mark.parametrize("name", ["layers.3", "layer", "mlp", "layers.1.mlp.act", "lm_head", "layers.1.mlpdown"])
def test_a_name_of_nothing_is_refused_in_words(name: str) -> None:
    with pytest.raises(RecipeError, match=r"no smoothing group is called .*; allowed: layers\.N with N from 0 to 2"):
        groups_of(name, 3)


@pytest.mark.parametrize("assign", [setattr, lambda state, name, value: state.set_trait(name, value)])
def test_an_assignment_waits_for_a_change_that_is_under_way(state: BenchState, assign: Any) -> None:
    assigned = threading.Event()

    def assigner() -> None:
        assign(state, "recipe", Recipe(dtype="bfloat16"))
        assigned.set()

    thread = threading.Thread(target=assigner)

    def edit(recipe: Recipe) -> Recipe:
        thread.start()
        assert not assigned.wait(0.2)  # else this change would take it back unseen
        return replace(recipe, kv_cache=Int8KVCache())

    state.change(edit)
    thread.join(10)
    assert state.recipe == Recipe(dtype="bfloat16")
    assert state.undo_steps == 2
