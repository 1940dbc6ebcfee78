"""Engines from a model and from a calibrated checkpoint: whole folders that also run on a CPU, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from quantization.seen_ranges import ranges_of

from workbench.bench.open_session import open_session
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine import check
from workbench.engine.build import BuildOptions
from workbench.engine.folder import read_engine_config
from workbench.engine.prepare import build_from_calibrated, build_from_model
from workbench.errors import BuildError, Cancelled, CheckpointError, GateError, RecipeError
from workbench.progress import ProgressEvent
from workbench.quantization.calibrated import CalibratedOptions, convert_calibrated
from workbench.recipe import BuildLimits, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not on this platform")

LIMITS = BuildLimits(2, 16, 8, ("sm86",))
INT8 = Recipe(weights=Int8WeightOnly(), build=LIMITS)
STATIC = SmoothQuant(activation="per_tensor", weight="per_tensor")


@pytest.fixture(scope="module")
def model(random_model_dir: Callable[..., Path]) -> Path:
    return random_model_dir()


@pytest.fixture(scope="module")
def calibrated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[SmoothQuant | None], Path]:
    """``calibrated(smoothing)``: the model with its ranges."""
    made: dict[SmoothQuant | None, Path] = {}

    def make(smoothing: SmoothQuant | None) -> Path:
        if smoothing not in made:
            made[smoothing] = tmp_path_factory.mktemp("calibrated") / "1-gpu"
            convert_calibrated(model, made[smoothing], ranges_of(model), CalibratedOptions("float16", smoothing))
        return made[smoothing]

    return make


def test_a_model_becomes_an_engine_that_also_runs_on_a_cpu(model: Path, tmp_path: Path) -> None:
    report = build_from_model(model, INT8, tmp_path / "engine")
    assert report.passed
    assert sorted(path.name for path in tmp_path.glob("engine/*")) == ["checkpoint", "config.json", "rank0.engine"]
    engine = read_engine_config(tmp_path / "engine")
    assert engine.checkpoint_dir == tmp_path / "engine" / "checkpoint"
    assert load_checkpoint(engine.checkpoint_dir).recipe.weights == Int8WeightOnly()
    moved = (tmp_path / "engine").rename(tmp_path / "moved")
    opened = open_session(moved, "cpu")
    assert opened.session.limits == LIMITS
    assert opened.session.prefill([[1, 2, 3]]).shape == (1, 97)


def test_a_calibrated_checkpoint_is_quantized_as_asked(
    calibrated: Callable[[SmoothQuant | None], Path], tmp_path: Path
) -> None:
    recipe = Recipe(weights=STATIC, kv_cache=Int8KVCache(), build=LIMITS)
    assert build_from_calibrated(calibrated(SmoothQuant(alpha=0.5)), recipe, tmp_path / "engine").passed
    made = read_engine_config(tmp_path / "engine").recipe
    inside = load_checkpoint(tmp_path / "engine" / "checkpoint").recipe
    assert (inside.weights, inside.kv_cache) == (dataclasses.replace(STATIC, alpha=0.5), Int8KVCache())
    assert (made.weights, made.kv_cache) == (inside.weights, inside.kv_cache)


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        (Recipe(weights=SmoothQuant()), "smoothing"),
        (Recipe(weights=dataclasses.replace(STATIC, groups=())), "activations with one scale per tensor"),
        (Recipe(kv_cache=Int8KVCache()), "an INT8 KV cache"),
    ],
)
def test_a_model_alone_has_no_ranges(model: Path, tmp_path: Path, recipe: Recipe, what: str) -> None:
    with pytest.raises(RecipeError, match=f"asks for {what}, which needs ranges.*workbench convert' and -sq ALPHA"):
        build_from_model(model, recipe, tmp_path / "engine")


def test_smoothquant_needs_a_smoothed_checkpoint(
    calibrated: Callable[[SmoothQuant | None], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"was calibrated but not smoothed.*convert the model again with -sq"):
        build_from_calibrated(calibrated(None), Recipe(weights=SmoothQuant()), tmp_path / "engine")


def test_a_checkpoint_without_ranges(model: Path, tmp_path: Path) -> None:
    build_from_model(model, INT8, tmp_path / "engine", BuildOptions(verify="off"))
    with pytest.raises(CheckpointError, match=r"is a quantized checkpoint, and holds no ranges.*--checkpoint_dir"):
        build_from_calibrated(tmp_path / "engine" / "checkpoint", INT8, tmp_path / "other")


def test_an_existing_output_needs_force(model: Path, tmp_path: Path) -> None:
    build_from_model(model, INT8, tmp_path / "engine", BuildOptions(verify="off"))
    with pytest.raises(CheckpointError, match="exists; add --force"):
        build_from_model(model, INT8, tmp_path / "engine")
    build_from_model(model, Recipe(build=LIMITS), tmp_path / "engine", BuildOptions(verify="off", force=True))
    assert load_checkpoint(tmp_path / "engine" / "checkpoint").recipe.weights is None


def test_a_failed_check_a_refused_build_and_a_stop_leave_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: ProgressEvent) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        build_from_model(model, INT8, tmp_path / "engine", report=stop)
    too_long = dataclasses.replace(INT8, build=BuildLimits(1, 4096, 1))
    with pytest.raises(BuildError, match="max_position_embeddings 4096"):
        build_from_model(model, too_long, tmp_path / "engine")
    monkeypatch.setattr(check, "RATIO", 0.0)
    monkeypatch.setattr(check, "NOISE_FLOOR", 0.0)
    with pytest.raises(GateError):
        build_from_model(model, INT8, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []
