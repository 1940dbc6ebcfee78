"""The bench without widgets: calibrating, tuning, studying and converting one model, and what people do wrong."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import pytest

from workbench.bench.bench import Bench, CalibrationRequest
from workbench.checkpoint.unified import load_checkpoint
from workbench.errors import Cancelled, CheckpointError, RecipeError, WorkbenchError
from workbench.quantization import calibration as calibration_module
from workbench.recipe import Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

TEXT = "the quick brown fox jumps over the lazy dog 0123456789 " * 60
SMALL = CalibrationRequest([TEXT], samples=4, length=16, tune=4)


@pytest.fixture
def bench(speaking_model_dir, tmp_path):
    return Bench(speaking_model_dir, cache_dir=tmp_path / "cache", device="cpu")


@pytest.fixture
def calibrated(bench):
    bench.calibrate(SMALL).start().result(60)
    return bench


def test_a_new_bench_has_a_recipe_of_its_model_and_nothing_calibrated(bench, speaking_model_dir):
    assert bench.recipe == Recipe(str(speaking_model_dir), "bfloat16", SmoothQuant())
    assert bench.calibration is None
    assert bench.search is None
    assert bench.undo_steps == 0
    assert "2 layers" in repr(bench)
    assert "nothing calibrated yet" in repr(bench)


def test_calibration_arrives_in_the_state_and_in_the_next_bench(calibrated, tmp_path):
    assert "4 x 16 tokens" in calibrated.calibration.name
    assert calibrated.search is not None
    again = Bench(calibrated.model_dir, cache_dir=tmp_path / "cache", device="cpu")
    assert again.calibration.folder == calibrated.calibration.folder
    assert again.search is not None
    assert list(again.calibrations().values()) == [calibrated.calibration.folder]


def test_the_largest_calibration_is_taken_first(calibrated, tmp_path):
    calibrated.calibrate(dataclasses.replace(SMALL, samples=2)).start().result(60)
    again = Bench(calibrated.model_dir, cache_dir=tmp_path / "cache", device="cpu")
    assert "4 x 16" in again.calibration.name


def test_the_same_calibration_is_not_run_twice(calibrated, monkeypatch):
    before = calibrated.calibration
    monkeypatch.setattr("workbench.bench.bench.calibrate", None)  # calling it would fail
    calibrated.calibrate(SMALL).start().result(60)
    assert calibrated.calibration.folder == before.folder


def test_other_text_under_the_same_name_is_calibrated_anew(bench, tmp_path):
    file = tmp_path / "text.txt"
    request = CalibrationRequest(file, samples=4, length=16, tune=4)
    file.write_text(TEXT)
    first = bench.calibrate(request).start().result(60)
    file.write_text(TEXT.upper())
    second = bench.calibrate(request).start().result(60)
    assert first.folder == second.folder
    assert first.ranges.source[0].text_sha256 != second.ranges.source[0].text_sha256


def test_a_stopped_calibration_goes_on_where_it_was(bench, monkeypatch):
    request = dataclasses.replace(SMALL, samples=40)
    passes = []
    original = calibration_module._Calibration._pass

    def counted(run, windows, watch, task, place, **more):
        passes.append((task, place))
        if place[0] and len(passes) == 2:
            job.stop()
        original(run, windows, watch, task, place, **more)

    monkeypatch.setattr(calibration_module._Calibration, "_pass", counted)
    job = bench.calibrate(request)
    with pytest.raises(Cancelled):
        job.start().result(60)
    assert bench.calibration is None
    job.start().result(60)
    places = [place for task, place in passes if task == "calibrate"]
    assert places == [(0, 40), (32, 40), (32, 40)]
    assert bench.calibration.ranges.source[0].windows == 40


def test_two_jobs_never_run_at_once(bench):
    first, second = bench.calibrate(SMALL), bench.calibrate(dataclasses.replace(SMALL, samples=2))
    begun, go_on = threading.Event(), threading.Event()
    blocker = type(first)("hold", lambda report: (begun.set(), go_on.wait(30)), bench.jobs).start()  # noqa: ARG005
    assert begun.wait(10)
    first.start()
    second.start()
    assert bench.calibration is None
    assert first.state == second.state == "waiting"
    second.stop()
    with pytest.raises(Cancelled):
        second.result(10)
    go_on.set()
    blocker.result(10)
    assert "4 x 16" in first.result(60).name


def test_tuning_needs_rows_and_says_so(bench):
    with pytest.raises(WorkbenchError, match="no held-out rows to tune on; calibrate first"):
        bench.tune()


def test_tuning_changes_the_recipe_by_groups_and_is_one_step_to_undo(calibrated):
    calibrated.lock("layers.0.o")
    steps = calibrated.undo_steps
    found = calibrated.tune("layers.0").start().result(60)
    alphas = calibrated.smoothing.alpha_by_group
    assert set(found) == {f"layers.0.{group}" for group in ("qkv", "gate_up", "down")}
    assert alphas == found | {"layers.0.o": 0.85}
    assert calibrated.undo_steps <= steps + 1
    calibrated.undo()
    assert set(calibrated.smoothing.alpha_by_group) <= {"layers.0.o"}


def test_a_group_that_is_not_there_is_named(calibrated):
    with pytest.raises(RecipeError, match=r"no smoothing group is called 'layers.7'; allowed: layers.N with N from 0"):
        calibrated.tune("layers.7")


def test_smoothed_ranges_follow_the_recipe(calibrated):
    before = calibrated.smoothed_ranges().input_absmax("layers.0.mlp.down")
    calibrated.set_alpha(0.1, "layers.0.down")
    after = calibrated.smoothed_ranges().input_absmax("layers.0.mlp.down")
    assert not before.equal(after)
    calibrated.change(lambda recipe: dataclasses.replace(recipe, weights=None))
    assert calibrated.smoothed_ranges() is calibrated.calibration.ranges


def test_smoothed_ranges_need_a_calibration(bench):
    with pytest.raises(WorkbenchError, match="nothing is calibrated yet; calibrate first"):
        bench.smoothed_ranges()


def test_the_kv_study_arrives_in_the_state_and_is_collected_once(calibrated, monkeypatch):
    request = {"length": 16, "windows": 2}
    monkeypatch.setattr("workbench.bench.bench.KV_LENGTH", request["length"])
    study = calibrated.study_kv().start().result(60)
    assert calibrated.kv_study is study
    assert study.error(1, Int8KVCache()).relative_l2 > 0
    monkeypatch.setattr("workbench.bench.bench.collect_attention_inputs", None)
    assert calibrated.study_kv().start().result(60) is not study


def test_the_kv_study_needs_a_calibration(bench):
    with pytest.raises(WorkbenchError, match="nothing is calibrated yet; calibrate first"):
        bench.study_kv().start().result(10)


def test_checkpoints_are_made_once_for_each_recipe(calibrated):
    int8 = Recipe(str(calibrated.model_dir), "bfloat16", Int8WeightOnly())
    folder = calibrated.checkpoint(int8)
    assert load_checkpoint(folder).recipe.weights == Int8WeightOnly()
    assert calibrated.checkpoint(int8) == folder
    assert calibrated.checkpoint() != folder
    assert load_checkpoint(calibrated.checkpoint()).recipe.weights == SmoothQuant()


def test_ranges_are_part_of_what_a_checkpoint_is(calibrated):
    smooth = calibrated.checkpoint()
    plain = calibrated.checkpoint(Recipe(dtype="float32"))
    calibrated.calibrate(dataclasses.replace(SMALL, samples=2)).start().result(60)
    assert calibrated.checkpoint() != smooth
    assert calibrated.checkpoint(Recipe(dtype="float32")) == plain


def test_a_checkpoint_that_was_deleted_or_broken_is_made_again(calibrated):
    folder = calibrated.checkpoint()
    shutil.rmtree(folder)
    assert load_checkpoint(calibrated.checkpoint()).recipe.weights == SmoothQuant()
    (folder / "config.json").write_text("{")
    assert load_checkpoint(calibrated.checkpoint()).recipe.weights == SmoothQuant()


def test_a_deleted_model_is_named(calibrated):
    shutil.rmtree(calibrated.model_dir)
    with pytest.raises(CheckpointError, match="model is not a folder; give the folder of a Hugging Face checkpoint"):
        calibrated.checkpoint(Recipe(dtype="float32"))


def test_ranges_of_another_model_are_refused(calibrated, random_model_dir, tmp_path):
    other = Bench(random_model_dir(seed=5), cache_dir=tmp_path / "cache", device="cpu")
    assert other.calibration is None
    with pytest.raises(CheckpointError, match="the ranges are of model"):
        other.use_calibration(calibrated.calibration.folder)
    assert other.calibration is None
