from __future__ import annotations

import dataclasses
import gc
import shutil
import weakref

import pytest

from workbench.bench.bench import Bench
from workbench.bench.comparing import ComparisonRequest, compare_models
from workbench.errors import Cancelled, CheckpointError, LimitError, WorkbenchError
from workbench.evaluation import memory
from workbench.recipe import Int8WeightOnly, Recipe

INT8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())
SHORT = ComparisonRequest(windows=2, length=12)


@pytest.fixture
def bench(speaking_model_dir, tmp_path):
    return Bench(speaking_model_dir, INT8, cache_dir=tmp_path / "cache", device="cpu")


def test_the_recipe_against_hugging_face(bench):
    found = compare_models(bench, SHORT)
    diff = found.diff
    assert (diff.windows, diff.tokens) == (2, 24)
    assert diff.precision == "int8"
    assert diff.options.reference_name == "Hugging Face float32"
    assert diff.first_divergence is None
    assert len(diff.per_token.window_texts(0)) == 12
    assert all(isinstance(text, str) for text in diff.per_token.window_texts(0))


def test_two_of_ours(bench):
    diff = compare_models(bench, dataclasses.replace(SHORT, reference=Recipe(dtype="bfloat16"))).diff
    assert diff.options.reference_name == "bfloat16"
    assert diff.frame["relative_l2"].iloc[-1] > 1e-4


def test_float64_tells_the_cause(bench):
    events = []
    judged = compare_models(bench, SHORT).in_float64(events.append)
    assert "so the code is right" in judged.verdict
    assert [event.task for event in events if event.depth == 0] == ["compare in float64"] * 2


def test_the_same_model_on_both_sides_is_refused(bench):
    with pytest.raises(WorkbenchError, match="both sides are INT8 weights, bfloat16; choose another model"):
        compare_models(bench, dataclasses.replace(SHORT, reference=INT8))


def test_a_text_too_long_is_refused(bench):
    with pytest.raises(LimitError, match=r"the text has .* tokens, but 64 windows of 4096 need"):
        compare_models(bench, ComparisonRequest(windows=64, length=4096))


def test_a_stop_while_converting_leaves_nothing_behind(bench):
    def stop(_event):
        raise Cancelled

    with pytest.raises(Cancelled):
        compare_models(bench, SHORT, stop)
    assert bench.workspace.checkpoints() == []
    assert compare_models(bench, SHORT).diff


def test_a_cached_checkpoint_that_was_deleted_is_made_again(bench):
    first = compare_models(bench, SHORT).diff
    shutil.rmtree(bench.workspace.checkpoints()[0])
    again = compare_models(bench, SHORT).diff
    assert again.frame["relative_l2"].equals(first.frame["relative_l2"])


def test_a_folder_that_is_deleted_after_the_comparison(bench, tmp_path):
    """What is open stays readable: only the next comparison misses it."""
    copy = shutil.copytree(bench.checkpoint(Recipe(dtype="float16")), tmp_path / "copy")
    request = dataclasses.replace(SHORT, candidate=str(copy))
    found = compare_models(bench, request)
    shutil.rmtree(copy)
    assert found.in_float64().verdict
    with pytest.raises(CheckpointError, match=r"copy does not exist"):
        compare_models(bench, request)


def test_a_comparison_keeps_no_model_in_memory(bench):
    found = compare_models(bench, SHORT)
    model = weakref.ref(bench.models.sides("hf", INT8)[0].model)
    bench.models.close()
    gc.collect()
    assert model() is None
    assert (found.reference.name, found.reference.checkpoint) == ("Hugging Face float32", None)
    assert found.candidate.checkpoint.recipe.weights == INT8.weights
    assert found.in_float64().verdict


def test_a_rerun_that_does_not_fit_is_refused_with_sizes(bench, monkeypatch):
    found = compare_models(bench, SHORT)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1000)
    monkeypatch.setattr("workbench.bench.models.free_bytes", lambda _device: 1000)
    with pytest.raises(LimitError, match=r"the rerun in float64 needs .* GB of memory on cpu; allowed: 1e-06 GB"):
        found.in_float64()
    assert bench.models._open == {}  # they were closed to make room
