"""The comparing panel through its widgets, on a small random model."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from dataclasses import replace

import pytest

from workbench.bench.comparing import ComparisonRequest, compare_models
from workbench.bench.models import HUGGING_FACE
from workbench.errors import Cancelled
from workbench.recipe import Int8WeightOnly, Recipe
from workbench.ui import compare_panel
from workbench.ui.compare_panel import ComparePanel

INT8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())


@pytest.fixture
def panel(speaking_bench):
    panel = ComparePanel(speaking_bench)
    panel.windows.value, panel.length.value = 2, 12
    yield panel
    panel.close()


def _compared(panel):
    panel._job_panel.start_button.click()
    panel.job.wait(60)
    return panel.job


def test_before_the_first_comparison_it_says_what_to_press(panel):
    assert "press Compare" in panel._place.children[0].value
    assert panel.diff is None
    assert panel.frame.empty
    assert panel.figure is None
    assert repr(panel) == "ComparePanel(nothing compared yet)"


def test_compare_shows_the_difference(panel):
    assert _compared(panel).state == "done"
    diff = panel.diff
    assert (diff.windows, diff.tokens) == (2, 24)
    assert diff.options.candidate_name == "INT8 weights, bfloat16"
    assert panel._place.children == (panel.panel,)
    assert len(panel.frame) == len(diff.frame)
    assert panel.figure.axes
    assert repr(diff) in repr(panel)
    assert panel.job.result() is diff


def test_the_same_panel_shows_the_next_one_at_the_same_tap(panel):
    _compared(panel)
    shown = panel.panel
    shown.selected = "layers.1.attention.o"
    panel.candidate.choice = Recipe(dtype="float16")
    _compared(panel)
    assert panel.panel is shown
    assert shown.diff.options.candidate_name == "float16"
    assert shown.selected == "layers.1.attention.o"


def test_a_changed_recipe_is_noted(panel, speaking_bench):
    _compared(panel)
    assert panel._note.value == ""
    before = speaking_bench.recipe
    speaking_bench.recipe = Recipe(dtype="float16")
    assert "The recipe has changed since this comparison" in panel._note.value
    speaking_bench.recipe = before
    assert panel._note.value == ""
    panel.candidate.choice = before
    _compared(panel)
    speaking_bench.recipe = Recipe(dtype="float16")
    assert panel._note.value == ""


def test_what_is_chosen_when_the_button_is_pressed_counts(panel, speaking_bench, monkeypatch):
    begun, going = threading.Event(), threading.Event()

    def waiting(_bench, request, _report):
        begun.set()
        going.wait(10)
        asked.append(request)
        raise Cancelled

    asked = []
    monkeypatch.setattr(compare_panel, "compare_models", waiting)
    recipe = speaking_bench.recipe
    panel._job_panel.start_button.click()
    assert begun.wait(10)
    panel.windows.value, panel.reference.choice, speaking_bench.recipe = 9, None, Recipe()
    going.set()
    panel.job.wait(10)
    assert (asked[0].windows, asked[0].reference, asked[0].candidate) == (2, HUGGING_FACE, recipe)


def test_a_stop_pressed_twice_leaves_the_last_difference(panel, monkeypatch):
    _compared(panel)
    shown = panel.diff
    begun, going = threading.Event(), threading.Event()
    compare = compare_panel.compare_models

    def slowly(bench, request, report):
        begun.set()
        going.wait(10)
        return compare(bench, request, report)

    monkeypatch.setattr(compare_panel, "compare_models", slowly)
    panel._job_panel.start_button.click()
    assert begun.wait(10)
    panel._job_panel.stop_button.click()
    panel._job_panel.stop_button.click()
    going.set()
    panel.job.wait(20)
    assert panel.job.state == "stopped"
    assert panel.diff is shown


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nowhere", "folder nowhere does not exist"),
        ("", "no folder is named"),
        (HUGGING_FACE, "both sides are Hugging"),
    ],
)
def test_a_choice_that_cannot_be_compared_says_why(panel, choice, message):
    panel.candidate.choice = choice
    assert _compared(panel).state == "failed"
    assert message in panel._job_panel.status.value
    assert panel.diff is None
    panel.candidate.choice = None
    assert _compared(panel).state == "done"


def test_a_checkpoint_that_was_deleted_meanwhile(panel, speaking_bench, tmp_path):
    copy = shutil.copytree(speaking_bench.checkpoint(), tmp_path / "copy")
    panel.candidate.choice = str(copy)
    _compared(panel)
    shutil.rmtree(copy)
    assert _compared(panel).state == "failed"
    assert "copy does not exist" in panel._job_panel.status.value
    assert panel.diff.options.candidate_name == "copy: INT8 weights, bfloat16"


def test_the_rerun_in_float64_waits_for_its_turn_and_judges(panel, speaking_bench):
    _compared(panel)
    rerun = panel.panel._job
    assert rerun.job._queue is speaking_bench.jobs
    rerun.start_button.click()
    rerun.job.wait(60)
    assert "so the code is right" in panel.diff.verdict
    assert "so the code is right" in panel.panel._verdict.value
    panel.candidate.choice = Recipe(dtype="float16")
    _compared(panel)
    assert panel.panel._verdict.value == ""
    assert panel.panel._job is not rerun


def test_two_panels_on_one_bench_take_turns(panel, speaking_bench):
    other = ComparePanel(speaking_bench, Recipe(dtype="float16"))
    other.windows.value, other.length.value = 1, 8
    panel._job_panel.start_button.click()
    other._job_panel.start_button.click()
    for each in (panel, other):
        each.job.wait(60)
        assert each.job.state == "done"
    assert panel.diff.options.candidate_name != other.diff.options.candidate_name
    panel.panel.selected = "layers.1.mlp.down"
    assert other.panel.selected == speaking_bench.selected == "layers.1.mlp.down"


def test_a_closed_panel_stops_its_job_and_watches_nothing(speaking_bench):
    panel = ComparePanel(speaking_bench)
    panel.close()
    speaking_bench.recipe = replace(speaking_bench.recipe, dtype="float16")
    assert panel._note.value == ""


def test_what_was_made_is_offered_afterwards(panel):
    _compared(panel)
    assert "made before: INT8 weights, bfloat16" in panel.candidate.menu.options
    assert panel.candidate.choice is None


def test_a_rerun_offered_earlier_judges_its_own_pair(panel, speaking_bench):
    """It waited for its turn while another comparison ended."""
    _compared(panel)
    first, rerun = panel.diff, panel.panel._job.job
    panel.candidate.choice = Recipe(dtype="float16")
    _compared(panel)
    judged = rerun.start().result(60)
    expected = replace(
        compare_models(speaking_bench, ComparisonRequest(INT8, windows=2, length=12)), diff=first
    ).in_float64()
    assert judged.frame["float64"].equals(expected.frame["float64"])
    assert judged.frame["float64"].iloc[-1] > 1e-3  # INT8's error; float16's is below
    assert panel.diff.options.candidate_name == "float16"
    second = panel.panel._job.job.start().result(60)
    assert second.frame["float64"].iloc[-1] < 1e-3


def test_the_panel_keeps_no_model_in_memory(panel, speaking_bench):
    _compared(panel)
    model = weakref.ref(speaking_bench.models.sides(HUGGING_FACE, None)[0].model)
    speaking_bench.models.close()
    gc.collect()
    assert model() is None
