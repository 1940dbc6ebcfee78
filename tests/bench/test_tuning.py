"""Tuning and measuring as jobs: alphas come one by one, locks hold, a stop keeps what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from workbench.bench import state as state_module
from workbench.bench.alpha_book import AlphaBook
from workbench.bench.state import BenchState, groups_of
from workbench.bench.tuning import measuring_job, tuning_job
from workbench.errors import Cancelled, RecipeError, WorkbenchError
from workbench.quantization.alpha_search import AlphaCurve, AlphaSearch, tuned
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant

SECONDS = 60
ALL = groups_of("", 2)


@pytest.fixture
def state(random_search: AlphaSearch) -> BenchState:
    return BenchState(Recipe(weights=SmoothQuant()), search=random_search)


def test_every_group_gets_the_alpha_that_the_search_finds(state: BenchState, random_search: AlphaSearch) -> None:
    job = tuning_job(state, ALL, "tune all groups")
    found = job.start().result(SECONDS)
    expected = tuned(SmoothQuant(), random_search.tune(SmoothQuant()))
    assert state.smoothing == expected
    assert found == dict(expected.alpha_by_group)
    assert len(found) == 8
    assert job.title == "tune all groups"


def test_alphas_come_one_by_one_and_are_one_step_to_undo(state: BenchState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = type("Clock", (), {"now": 0.0})()

    def monotonic() -> float:
        clock.now += 1000.0
        return float(clock.now)

    monkeypatch.setattr(state_module, "time", type("Time", (), {"monotonic": staticmethod(monotonic)}))
    sizes: list[int] = []
    state.observe(lambda change: sizes.append(len(change["new"].weights.alpha_by_group)), "recipe")
    tuning_job(state, ALL, "tune").start().wait(SECONDS)
    assert sizes == list(range(1, 9))
    assert state.undo_steps == 1
    state.undo()
    assert state.smoothing == SmoothQuant()


def test_two_tunings_are_two_steps(state: BenchState) -> None:
    for name in ("layers.0", "layers.1"):
        tuning_job(state, groups_of(name, 2), name).start().wait(SECONDS)
    assert state.undo_steps == 2


def test_locked_groups_keep_theirs(state: BenchState) -> None:
    state.set_alpha(0.15, "layers.0.down")
    state.lock("layers.0.down")
    state.lock("layers.1.qkv")
    found = tuning_job(state, ALL, "tune").start().result(SECONDS)
    assert state.smoothing is not None
    assert state.smoothing.alpha_by_group["layers.0.down"] == 0.15
    assert state.smoothing.alpha_by_group["layers.1.qkv"] == 0.85
    assert set(found) == {f"layers.{layer}.{group}" for layer, group in ALL} - {"layers.0.down", "layers.1.qkv"}


def test_a_group_locked_during_the_work_keeps_its_alpha(state: BenchState) -> None:
    def lock(curve: AlphaCurve, _how: SmoothQuant) -> None:
        if curve.name == "layers.0.o":
            state.lock("layers.0.down")

    tuning_job(state, ALL, "tune", lock).start().wait(SECONDS)
    assert state.smoothing is not None
    assert state.smoothing.alpha_by_group["layers.0.down"] == 0.85


def test_a_stop_keeps_what_was_found(state: BenchState) -> None:
    def stop(curve: AlphaCurve, _how: SmoothQuant) -> None:
        if curve.name == "layers.0.qkv":
            job.stop()

    job = tuning_job(state, ALL, "tune", stop)
    job.start()
    with pytest.raises(Cancelled):
        job.result(SECONDS)
    assert state.smoothing is not None
    assert set(state.smoothing.alpha_by_group) == {"layers.0.o", "layers.0.down", "layers.0.qkv"}
    assert job.message == "stopped; the alphas found so far stay; Undo takes them back"


def test_what_is_told_has_the_conditions_of_each_curve(state: BenchState, random_search: AlphaSearch) -> None:
    book = AlphaBook(random_search)
    tuning_job(state, ALL, "tune", book.note).start().wait(SECONDS)
    assert state.smoothing is not None
    for layer, group in ALL:
        alpha, error = state.smoothing.alpha_of(layer, group), book.known_error(layer, group, state.smoothing)
        assert error == random_search.error(layer, group, state.smoothing).error
        assert book.known_best(layer, group, state.smoothing) == (alpha, error)


def test_of_all_groups_those_that_are_smoothed_are_tuned(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=SmoothQuant(groups=("down",))), search=random_search)
    tuning_job(state, ALL, "tune").start().wait(SECONDS)
    assert state.smoothing is not None
    assert state.smoothing.groups == ("down",)
    assert set(state.smoothing.alpha_by_group) == {"layers.0.down", "layers.1.down"}


def test_a_group_that_is_asked_for_comes_to_be_smoothed(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=SmoothQuant(groups=("down",))), search=random_search)
    tuning_job(state, [(1, "qkv")], "tune").start().wait(SECONDS)
    assert state.smoothing is not None
    assert state.smoothing.groups == ("qkv", "down")
    assert set(state.smoothing.alpha_by_group) == {"layers.1.qkv"}


def test_a_recipe_of_another_kind_becomes_smoothquant(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=Int8WeightOnly()), search=random_search)
    tuning_job(state, [(1, "o")], "tune").start().wait(SECONDS)
    assert isinstance(state.recipe.weights, SmoothQuant)
    assert set(state.recipe.weights.alpha_by_group) == {"layers.1.o"}


def test_without_held_out_rows_it_says_what_to_do() -> None:
    with pytest.raises(WorkbenchError, match=r"no held-out rows to tune on; calibrate first: bench\.calibrate"):
        tuning_job(BenchState(), ALL, "tune")


def test_missing_errors_are_measured_and_known_ones_are_not_again(
    state: BenchState, random_search: AlphaSearch
) -> None:
    book, told = AlphaBook(random_search), []
    note: Callable[[], Any] = lambda: told.append(1)  # noqa: E731
    book.error(0, "o", SmoothQuant())
    assert measuring_job(state, book, note).start().result(SECONDS) == 7
    assert len(told) == 7
    assert all(book.known_error(*place, SmoothQuant()) is not None for place in ALL)
    assert measuring_job(state, book, note).start().result(SECONDS) == 0
    state.set_alpha(0.5, "layers.0.o")
    assert measuring_job(state, book, note).start().result(SECONDS) == 2  # o itself, and qkv, whose rows it divides


def test_measuring_can_be_stopped(state: BenchState, random_search: AlphaSearch) -> None:
    book = AlphaBook(random_search)
    job = measuring_job(state, book, lambda: job.stop())
    assert job.start().wait(SECONDS).state == "stopped"
    assert job.message == "stopped; the errors measured so far stay"
    assert book.known_error(0, "qkv", SmoothQuant()) is not None


@pytest.mark.parametrize("first", [SmoothQuant(), Int8WeightOnly()])
@pytest.mark.parametrize("at", ["layers.0.o", "layers.0.qkv"])
def test_another_kind_that_is_chosen_meanwhile_ends_the_job(random_search: AlphaSearch, first: Any, at: str) -> None:
    state = BenchState(Recipe(weights=first), search=random_search)

    def choose(curve: AlphaCurve, _how: SmoothQuant) -> None:
        if curve.name == at:
            state.change(lambda recipe: replace(recipe, weights=Int4WeightOnly(32)))

    job = tuning_job(state, ALL, "tune", choose).start()
    with pytest.raises(Cancelled, match="weights are int4 now, and tuning leaves them so"):
        job.result(SECONDS)
    assert state.recipe.weights == Int4WeightOnly(32)
    assert job.state == "stopped"
    assert job.message.startswith("stopped; the recipe's weights are int4 now")


def test_an_undo_of_the_change_of_kind_ends_the_job(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=Int8WeightOnly()), search=random_search)

    def take_back(curve: AlphaCurve, _how: SmoothQuant) -> None:
        if curve.name == "layers.0.down":
            state.undo()

    assert tuning_job(state, ALL, "tune", take_back).start().wait(SECONDS).state == "stopped"
    assert state.recipe.weights == Int8WeightOnly()


def test_what_is_changed_meanwhile_shapes_the_groups_that_follow(state: BenchState) -> None:
    conditions: dict[str, SmoothQuant] = {}

    def change(curve: AlphaCurve, how: SmoothQuant) -> None:
        conditions[curve.name] = how
        if curve.name == "layers.0.down":
            state.set_alpha(0.1, "layers.0.o")
            state.lock("layers.1.o")

    tuning_job(state, ALL, "tune", change).start().wait(SECONDS)
    assert conditions["layers.0.qkv"].alpha_of(0, "o") == 0.1  # o's scales divide v's rows
    assert conditions["layers.1.qkv"].alpha_of(1, "o") == 0.85
    assert "layers.1.o" not in conditions


def test_kept_layers_are_left_out(random_search: AlphaSearch) -> None:
    recipe = Recipe(weights=SmoothQuant(), keep=("lm_head", "layers.*.mlp.down"))
    state = BenchState(recipe, search=random_search)
    found = tuning_job(state, ALL, "tune").start().result(SECONDS)
    assert set(found) == {f"layers.{layer}.{group}" for layer, group in ALL if group != "down"}
    assert measuring_job(state, AlphaBook(random_search), lambda: None).start().result(SECONDS) == 6


def test_a_layer_kept_meanwhile_is_left_out(state: BenchState) -> None:
    def keep(curve: AlphaCurve, _how: SmoothQuant) -> None:
        if curve.name == "layers.0.o":
            state.change(lambda recipe: replace(recipe, keep=("layers.0.mlp.down",)))

    found = tuning_job(state, ALL, "tune", keep).start().result(SECONDS)
    assert "layers.0.down" not in found
    assert len(found) == 7


def test_nothing_but_kept_layers_is_refused_in_words(random_search: AlphaSearch) -> None:
    recipe = Recipe(weights=SmoothQuant(), keep=("layers.*.mlp.down",))
    state = BenchState(recipe, search=random_search)
    job = tuning_job(state, [(0, "down"), (1, "down")], "tune").start()
    with pytest.raises(
        RecipeError, match=r"keeps layers\.0\.down and 1 more groups in float16: .*; take the layer out"
    ):
        job.result(SECONDS)
