"""The bench without widgets: calibrating, tuning, studying and converting one model, and what people do wrong."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import pytest

from workbench.bench.bench import Bench, CalibrationRequest
from workbench.bench.workspace import Workspace
from workbench.checkpoint.unified import load_checkpoint
from workbench.errors import Cancelled, CheckpointError, RecipeError, WorkbenchError
from workbench.quantization import calibration as calibration_module
from workbench.quantization.calibration import CalibrationOptions
from workbench.quantization.ranges import RANGES_FILE
from workbench.quantization.row_sample import ROWS_FILE
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
    with pytest.raises(CheckpointError, match="model does not exist; give the folder of a Hugging Face checkpoint"):
        calibrated.checkpoint(Recipe(dtype="float32"))


def test_ranges_of_another_model_are_refused(calibrated, random_model_dir, tmp_path):
    other = Bench(random_model_dir(seed=5), cache_dir=tmp_path / "cache", device="cpu")
    assert other.calibration is None
    with pytest.raises(CheckpointError, match="the ranges are of model"):
        other.use_calibration(calibrated.calibration.folder)
    assert other.calibration is None


def test_a_broken_calibration_is_passed_over_said_and_mended(calibrated, tmp_path):
    folder = calibrated.calibration.folder
    broken = folder.with_name("broken")
    broken.mkdir()
    (broken / RANGES_FILE).write_bytes(b"1234")
    again = Bench(calibrated.model_dir, cache_dir=tmp_path / "cache", device="cpu")
    assert again.calibration.folder == folder
    assert list(again.calibrations().values()) == [folder]
    assert again.broken_calibrations == [broken]
    assert "1 in the cache cannot be read (bench.broken_calibrations)" in repr(again)
    (folder / RANGES_FILE).write_bytes(b"1234")
    lost = Bench(calibrated.model_dir, cache_dir=tmp_path / "cache", device="cpu")
    assert lost.calibration is None
    assert lost.calibrate(SMALL).start().result(60).folder == folder
    assert lost.broken_calibrations == [broken]


def test_a_calibration_with_broken_rows_is_not_taken_at_the_start_and_mended(calibrated, tmp_path):
    folder = calibrated.calibration.folder
    calibrated.calibrate(dataclasses.replace(SMALL, samples=2)).start().result(60)
    (folder / ROWS_FILE).write_bytes(b"1234")
    again = Bench(calibrated.model_dir, cache_dir=tmp_path / "cache", device="cpu")
    assert "2 x 16" in again.calibration.name
    assert again.search is not None
    assert again.calibrate(SMALL).start().result(60).rows is not None


def test_windows_for_tuning_are_part_of_what_a_calibration_is(bench):
    one = bench.calibrate(dataclasses.replace(SMALL, tune=1)).start().result(60)
    more = bench.calibrate(dataclasses.replace(SMALL, tune=8)).start().result(60)
    linear = more.rows.linears[0]
    assert one.folder != more.folder
    assert (len(one.rows(linear)), len(more.rows(linear))) == (16, 128)


def test_two_texts_of_one_size_are_two_in_the_menu(calibrated):
    first = calibrated.calibration.folder
    other = dataclasses.replace(SMALL, data=[TEXT.upper()])
    second = calibrated.calibrate(other).start().result(60)
    found = calibrated.calibrations()
    assert list(found.values()) == [first, second.folder]
    assert all(", text " in name for name in found)
    assert found[second.name] == second.folder
    assert calibrated.load_calibration(first).name == next(iter(found))


def test_another_dtype_is_another_calibration_and_said(calibrated):
    exact = CalibrationOptions(dtype="float32", device="cpu")
    found = calibrated.calibrate(SMALL, exact).start().result(60)
    assert found.name.endswith("4 x 16 tokens, float32")
    assert found.ranges.source[0].dtype == "float32"
    assert len(calibrated.calibrations()) == 2


def test_what_is_finished_can_be_used_while_something_else_is_made(calibrated, tmp_path):
    int8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())
    folder = calibrated.checkpoint(int8)
    workspace = Workspace(tmp_path / "cache", calibrated.workspace.fingerprint)
    with workspace.writing(calibrated.calibration.folder), workspace.writing(folder):
        assert calibrated.checkpoint(int8) == folder
        assert calibrated.calibrate(SMALL).start().result(60).folder == calibrated.calibration.folder
        calibrated.checkpoint(Recipe(dtype="float32"))  # another folder, so that nothing is in the way


def test_two_that_want_the_same_checkpoint_convert_it_once(calibrated, monkeypatch):
    from workbench.quantization import convert as convert_module

    together, convert, made = threading.Barrier(2), convert_module.convert, []

    def counted(*args, **options):
        made.append(args[2])
        return convert(*args, **options)

    def ask():
        together.wait(10)
        found.append(calibrated.checkpoint(Recipe(dtype="float32")))

    monkeypatch.setattr(convert_module, "convert", counted)
    found = []
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert made == found[:1]


def test_the_model_of_a_recipe_that_is_taken_away_is_found_from_anywhere(random_model_dir, tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    (tmp_path / "model").symlink_to(random_model_dir())
    monkeypatch.chdir(tmp_path / "inside")
    bench = Bench("../model", cache_dir=tmp_path / "cache")
    assert bench.recipe.model == str(tmp_path / "model")
    bench.change(lambda recipe: dataclasses.replace(recipe, model="../model"))
    assert bench.recipe.model == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["~/nothing-here", "internlm/internlm-7b"])
def test_a_model_that_is_not_there_is_called_as_it_was_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"^{name} is no folder; give a model's folder, or its name to"):
        Bench(name, cache_dir=tmp_path / "cache")


def test_any_recipe_that_is_taken_is_of_the_benches_model(bench):
    bench.recipe = Recipe(dtype="float32")
    assert bench.recipe.model == str(bench.model_dir)
    assert "--model_dir MODEL" not in " ".join(bench.recipe.to_cli())
    bench.change(lambda recipe: dataclasses.replace(recipe, model="elsewhere"))
    assert bench.recipe.model == str(bench.model_dir)
    assert bench.undo_steps == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda bench: bench.set_alpha(0.3, "layers.99.down"), r"weights.alpha_by_group names 'layers.99.down', which"),
        (lambda bench: bench.lock("layers.2.o"), r"weights.alpha_by_group names 'layers.2.o', which"),
        (
            lambda bench: setattr(bench, "recipe", Recipe(weights=SmoothQuant(), keep=("layers.7.mlp.down",))),
            r"keep names 'layers.7.mlp.down', which this model does not have; allowed: layers 0 to 1",
        ),
    ],
)
def test_layers_that_the_model_lacks_are_refused(bench, act, message):
    before = bench.recipe
    with pytest.raises(RecipeError, match=message):
        act(bench)
    assert (bench.recipe, bench.undo_steps, bench.locked) == (before, 0, frozenset())


def test_a_bench_is_not_opened_with_a_recipe_of_a_larger_model(speaking_model_dir, tmp_path):
    recipe = Recipe(weights=SmoothQuant(alpha_by_group={"layers.5.o": 0.4}))
    with pytest.raises(
        RecipeError, match=r"names 'layers.5.o', which this model does not have; allowed: layers 0 to 1"
    ):
        Bench(speaking_model_dir, recipe, cache_dir=tmp_path / "cache", device="cpu")


def test_layers_by_pattern_are_kept(bench):
    bench.recipe = Recipe(weights=SmoothQuant(), keep=("lm_head", "layers.*.mlp.down", "layers.1.*"))
    assert "layers.*.mlp.down" in bench.recipe.keep
