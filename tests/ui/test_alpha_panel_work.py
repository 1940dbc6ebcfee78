"""The alpha panel at work, without a browser: tuning, errors, nothing to show yet, on a bench, without widgets."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.alphas_of_groups import own_alphas
from tests.ui.alpha_panel_steps import SECONDS, finish, row
from workbench.bench.bench import Bench
from workbench.bench.judging import CURRENT, Judgement, JudgeOptions
from workbench.bench.state import BenchState, Calibration
from workbench.errors import RecipeError
from workbench.quantization.alpha_search import AlphaSearch
from workbench.recipe import Recipe, SmoothQuant
from workbench.ui import alpha_panel
from workbench.ui.alpha_panel import AlphaPanel
from workbench.ui.alpha_wanted import Wanted
from workbench.ui.notebook import NotebookBench


@pytest.fixture
def state(random_search: AlphaSearch) -> BenchState:
    return BenchState(Recipe(weights=SmoothQuant()), search=random_search)


@pytest.fixture
def panel(state: BenchState) -> AlphaPanel:
    panel = AlphaPanel(state=state)
    panel.settle()
    return panel


# ---- tuning


def test_one_group_is_tuned(panel: AlphaPanel) -> None:
    panel.group = "layers.1.down"
    panel.view.work.tune_group.click()
    finish(panel)
    alphas = own_alphas(panel.state)
    assert set(alphas) == {"layers.1.down"}
    assert row(panel, "down").slider.value == alphas["layers.1.down"]
    best = panel.frame.set_index("group").loc["layers.1.down"]
    assert (best["alpha"], best["error"]) == (best["best_tried"], best["best_tried_error"])


def test_a_layer_is_tuned(panel: AlphaPanel) -> None:
    panel.view.layer.value = 1
    panel.view.work.tune_layer.click()
    finish(panel)
    assert set(own_alphas(panel.state)) == {f"layers.1.{group}" for group in ("qkv", "o", "gate_up", "down")}


def test_all_groups_are_tuned_in_one_step(panel: AlphaPanel) -> None:
    panel.view.work.tune_all.click()
    finish(panel)
    frame = panel.frame
    assert len(own_alphas(panel.state)) == 8
    assert frame["error"].notna().all()
    assert (frame["error"] <= frame["best_tried_error"] + 1e-12).all()
    assert panel.view.work.job_panel is not None
    assert "done" in panel.view.work.job_panel.status.value
    panel.state.undo()
    assert own_alphas(panel.state) == {}


def test_tuning_is_stopped_and_stop_pressed_twice(panel: AlphaPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    note = panel._book.note  # type: ignore[union-attr]

    def slow(*args: Any) -> None:
        note(*args)
        begun.set()
        go_on.wait(SECONDS)

    monkeypatch.setattr(panel._book, "note", slow)
    panel.view.work.tune_all.click()
    panel.view.work.tune_all.click()
    assert begun.wait(SECONDS)
    assert panel.view.work.tune_all.disabled
    job_panel = panel.view.work.job_panel
    assert job_panel is not None
    job_panel.stop_button.click()
    job_panel.stop_button.click()
    go_on.set()
    finish(panel)
    assert job_panel.job.state == "stopped"
    assert set(own_alphas(panel.state)) == {"layers.0.o"}
    assert "the alphas found so far stay" in job_panel.status.value
    assert not panel.view.work.tune_all.disabled


# ---- errors


def test_an_error_in_a_callback_shows_in_the_panel(panel: AlphaPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(panel.state, "reset_alphas", broken)
    row(panel, "o").slider.value = 0.3
    panel.settle()
    row(panel, "o").reset.click()
    assert "RuntimeError: no &lt;ink&gt;" in panel.status


def test_an_error_while_computing_shows_and_goes_away(panel: AlphaPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the weights are gone")

    monkeypatch.setattr(panel._book, "error", broken)
    panel.state.set_alpha(0.3)
    panel.settle()
    assert "the weights are gone" in panel.status
    monkeypatch.undo()
    panel.state.set_alpha(0.4)
    panel.settle()
    assert panel.status == ""
    assert panel.error is not None
    assert panel.error.alpha == 0.4


# ---- nothing to show yet


def test_it_stands_alone_on_a_search(random_search: AlphaSearch) -> None:
    panel = AlphaPanel(random_search)
    panel.settle()
    row(panel, "o").slider.value = 0.5
    assert own_alphas(panel.state) == {"layers.0.o": 0.5}
    assert panel.view.work.judge.layout.display == "none"
    with pytest.raises(TypeError, match="a search, or a state that has one; not both"):
        AlphaPanel(random_search, state=BenchState())


def test_without_a_search_it_says_what_to_do_and_fills_when_one_comes(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=SmoothQuant()))
    panel = AlphaPanel(state=state, group="layers.1.down")
    assert "give AlphaPanel(search) an AlphaSearch" in panel.view.missing.children[0].value
    assert panel.view.drawn.layout.display == "none"
    assert (panel.error, panel.curve, panel.figure, len(panel.frame)) == (None, None, None, 0)
    assert "there is nothing to tune on" in repr(panel)
    state.search = random_search
    panel.settle()
    assert panel.group == "layers.1.down"
    assert panel.error is not None
    assert panel.view.missing.children == ()
    assert panel.view.drawn.layout.display == ""


def test_a_calibration_without_rows_is_named(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=SmoothQuant()))
    panel = AlphaPanel(state=state)
    state.calibration = Calibration("text, 4 x 12", random_search.ranges)
    assert "(text, 4 x 12) kept no held-out rows" in panel.view.missing.children[0].value


def test_another_search_forgets_the_errors_of_the_first(panel: AlphaPanel, random_search: AlphaSearch) -> None:
    other = AlphaSearch(random_search.source, random_search.ranges, random_search.rows)
    panel.state.search = other
    panel.settle()
    assert panel._book is not None
    assert panel._book.search is other
    panel.state.search = None
    panel.settle()
    assert panel.error is None
    assert panel.frame["error"].isna().all()
    assert panel.view.drawn.layout.display == "none"


# ---- on a bench


@pytest.fixture
def bench(random_model_dir: Callable[..., Path], tmp_path: Path) -> NotebookBench:
    return NotebookBench(random_model_dir(), cache_dir=tmp_path, device="cpu")


def test_a_bench_offers_to_calibrate(bench: NotebookBench, random_calibration: Path) -> None:
    panel = bench.alpha()
    assert isinstance(panel, AlphaPanel)
    assert "press Start for a quick look" in panel.view.missing.children[0].value
    assert panel.view.missing.children[1].job.title.startswith("calibrate")
    assert panel.group == "layers.0.qkv"
    row(panel, "o").slider.value = 0.3  # alphas can be chosen without errors
    assert own_alphas(bench) == {"layers.0.o": 0.3}
    bench.use_calibration(random_calibration)
    panel.settle()
    assert panel.view.missing.children == ()
    assert panel.error is not None
    assert panel.view.work.judge.layout.display == ""


def test_the_same_question_gets_the_same_panel(bench: NotebookBench) -> None:
    assert bench.alpha("layers.1") is bench.alpha(group="layers.1")
    with pytest.raises(RecipeError, match=r"no smoothing group is called 'layers\.9'"):
        bench.alpha("layers.9")


def test_the_judge_is_asked_and_told_apart_from_a_changed_recipe(
    bench: NotebookBench, random_calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.bench.job import Job

    def judging_job(of: Bench) -> Job:
        import pandas as pd

        return Job("judge", lambda **_: Judgement(pd.DataFrame(), {CURRENT: of.recipe}, JudgeOptions()), of.jobs)

    monkeypatch.setattr(alpha_panel, "judging_job", judging_job)
    bench.use_calibration(random_calibration)
    panel = bench.alpha()
    assert isinstance(panel, AlphaPanel)
    panel.view.work.judge.click()
    finish(panel)
    assert panel.judgement is not None
    assert panel.judgement.recipes[CURRENT] == bench.recipe
    assert "judge again" not in panel.view.work._table.value
    panel.view.all_groups.value = 0.5
    assert "judge again" in panel.view.work._table.value
    bench.undo()
    assert "judge again" not in panel.view.work._table.value


# ---- places without widgets


def test_places_without_widgets_get_a_picture(panel: AlphaPanel) -> None:
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(panel)
    assert len(panel.figure.axes) == 3  # type: ignore[union-attr]


def test_after_close_nothing_follows(panel: AlphaPanel) -> None:
    panel.close()
    error = panel.error
    panel.state.set_alpha(0.3, "layers.0.qkv")
    panel.settle()
    assert panel.error is error
    assert "layers.0.qkv: 0.3" not in panel.text.yaml
    assert row(panel, "qkv").slider.value == 0.85


def test_a_panel_that_was_just_made_has_a_picture(state: BenchState) -> None:
    panel = AlphaPanel(state=state)
    data = panel._repr_mimebundle_()
    assert "image/png" in data
    assert "output error" in data["text/plain"]


def test_before_the_picture_is_there_it_is_being_computed(state: BenchState, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(Wanted, "picture", lambda _wanted: free.wait(SECONDS))
    monkeypatch.setattr(AlphaPanel, "_show_picture", lambda *_: None)
    panel = AlphaPanel(state=state)
    assert repr(panel) == "AlphaPanel(layers.0.qkv: computing its error)"
    free.set()
    panel.settle()
    assert repr(panel) == "AlphaPanel(layers.0.qkv: its error could not be computed)"
