"""Building for real, ahead of time, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.engine import build as building
from workbench.engine.build import BuildOptions, build_engine
from workbench.engine.folder import read_engine_config
from workbench.engine.network import DecoderNetwork
from workbench.errors import BackendError, BuildError, Cancelled, CheckpointError, GateError, WorkbenchError
from workbench.progress import ProgressEvent
from workbench.quantization.convert import convert
from workbench.recipe import BuildLimits, Int8WeightOnly, Recipe

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

LIMITS = BuildLimits(max_batch_size=2, max_input_len=32, max_output_len=16)


@pytest.fixture
def checkpoint(random_model_dir: Callable[..., Path], tmp_path: Path) -> Callable[[Recipe], Path]:
    def make(recipe: Recipe) -> Path:
        model = random_model_dir(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=96, vocab=101, bias=True)
        convert(model, recipe, tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    return make


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weights", [None, Int8WeightOnly()])
def test_every_precision_builds_checked_and_compiles_as_asked(
    dtype: str, weights: Int8WeightOnly | None, checkpoint: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    folder = checkpoint(Recipe(dtype=dtype, weights=weights, build=LIMITS))
    report = build_engine(folder, tmp_path / "engine")
    assert report.passed
    assert report.check is not None
    assert not report.check.sampled
    assert report.deviations.empty, report.deviations.to_string()
    assert list(report.linears["linear"])[-1] == "lm_head"
    assert report.plan_bytes == (tmp_path / "engine" / "rank0.engine").stat().st_size > 10_000
    assert report.statistics.weights_bytes
    config = read_engine_config(tmp_path / "engine")
    assert config.recipe == Recipe(dtype=dtype, weights=weights, build=LIMITS, model=config.recipe.model)
    assert (config.product, config.version) == ("tensorrt_rtx", trt.__version__)
    assert config.checkpoint_dir.resolve() == folder.resolve()
    said = json.loads((tmp_path / "engine" / "config.json").read_text())["workbench"]
    assert said["build"]["check"]["passed"] is True
    assert said["build"]["linears"] == report.linears.to_dict("records")


def test_limits_of_the_caller_replace_the_recipe_s(checkpoint: Callable[[Recipe], Path], tmp_path: Path) -> None:
    folder = checkpoint(Recipe(build=LIMITS))
    other = BuildLimits(max_batch_size=1, max_input_len=8, max_output_len=4, targets=("sm89",))
    report = build_engine(folder, tmp_path / "engine", BuildOptions(limits=other, verify="sample"))
    assert report.targets == ("sm89",)
    assert report.check is not None
    assert report.check.sampled
    assert read_engine_config(tmp_path / "engine").recipe.build == other


def test_phases_are_reported_with_their_depth(checkpoint: Callable[[Recipe], Path], tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    build_engine(checkpoint(Recipe(build=LIMITS)), tmp_path / "engine", BuildOptions(verify="off"), events.append)
    phases = [event for event in events if event.task.startswith("build: ")]
    assert {event.depth for event in phases} >= {0, 1}
    assert all(0 <= event.done <= event.total for event in phases)
    assert phases[-1].done == phases[-1].total


def _leavings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "checkpoint")


@pytest.mark.parametrize("stop", [Cancelled, KeyboardInterrupt, BrokenPipeError])
def test_a_stopped_build_leaves_nothing(
    stop: type[BaseException], checkpoint: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    def report(event: ProgressEvent) -> None:
        if event.task.startswith("build: ") and event.done >= 1:
            raise stop

    folder = checkpoint(Recipe(build=LIMITS))
    with pytest.raises(stop):
        build_engine(folder, tmp_path / "engine", BuildOptions(verify="off"), report)
    assert _leavings(tmp_path) == []


def test_existing_output_is_refused_before_work_and_replaced_with_force(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    folder = checkpoint(Recipe(build=LIMITS))
    build_engine(folder, tmp_path / "engine", BuildOptions(verify="off"))
    events: list[ProgressEvent] = []
    with pytest.raises(CheckpointError, match="exists"):
        build_engine(folder, tmp_path / "engine", report=events.append)
    assert events == []
    build_engine(folder, tmp_path / "engine", BuildOptions(verify="off", force=True))


def test_a_network_that_fails_its_check_is_not_built(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = building.build_network

    def wrong(*arguments: Any, **options: Any) -> DecoderNetwork:
        network = real(*arguments, **options)
        network.record.taps["layers.0.attention.o"] = network.record.taps["layers.0.mlp.down"]
        return network

    monkeypatch.setattr(building, "build_network", wrong)
    folder = checkpoint(Recipe(build=LIMITS))
    with pytest.raises(GateError, match=r"differs from the model at 1 taps, first at layers\.0\.attention\.o"):
        build_engine(folder, tmp_path / "engine")
    assert _leavings(tmp_path) == []


def test_mistakes_are_named(checkpoint: Callable[[Recipe], Path], tmp_path: Path) -> None:
    folder = checkpoint(Recipe(build=LIMITS))
    with pytest.raises(WorkbenchError, match="verify is 'often'; allowed: auto, full, sample, off"):
        build_engine(folder, tmp_path / "engine", BuildOptions(verify="often"))
    with pytest.raises(BuildError, match=r"max_input_len 5000 .* allowed: up to the model's max_position_embeddings"):
        build_engine(folder, tmp_path / "engine", BuildOptions(limits=BuildLimits(max_input_len=5000)))
    with pytest.raises(CheckpointError, match="nowhere"):
        build_engine(tmp_path / "nowhere", tmp_path / "engine")
    assert _leavings(tmp_path) == []


def test_without_any_tensorrt_the_error_names_the_way_out(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.engine.product._import", lambda _: None)
    with pytest.raises(BackendError, match=r"no TensorRT is installed.*pip install tensorrt-rtx-cu13.*--backend cpu"):
        build_engine(checkpoint(Recipe(build=LIMITS)), tmp_path / "engine")


def test_a_disk_that_fills_up_is_told_as_such(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "plan_path", lambda _: Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device"):
        build_engine(checkpoint(Recipe(build=LIMITS)), tmp_path / "engine", BuildOptions(verify="off"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_builder_s_refusal_is_passed_on(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dynamic inputs without any profile: TensorRT refuses, and says why in its log.
    monkeypatch.setattr(building, "add_profiles", lambda *_: None)
    with pytest.raises(BuildError, match=r"tensorrt_rtx .* refused the network: .+"):
        build_engine(checkpoint(Recipe(build=LIMITS)), tmp_path / "engine", BuildOptions(verify="off"))
    assert _leavings(tmp_path) == []


def test_an_engine_never_replaces_the_checkpoint_that_it_is_built_from(
    checkpoint: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    build_engine(checkpoint(Recipe(build=LIMITS)), engine, BuildOptions(verify="off"))
    inner = (tmp_path / "checkpoint").rename(engine / "checkpoint")
    with pytest.raises(CheckpointError, match=r"holds .*, which it would be made from"):
        build_engine(inner, engine, BuildOptions(verify="off", force=True))
    assert (inner / "rank0.safetensors").is_file()
