"""The two steps: a calibrated checkpoint, and any quantization of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.quantization import seen_ranges
from tests.tolerances import TOLERANCE, relative_l2
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import load_checkpoint, verify_checksum
from workbench.errors import CheckpointError, RecipeError
from workbench.model.rotary import stretched
from workbench.model.weights import Int8Weight
from workbench.progress import ProgressEvent
from workbench.quantization.calibrated import (
    CalibratedOptions,
    calibrated_ranges,
    convert_calibrated,
    plan_calibrated,
    plan_quantized,
    quantize_calibrated,
)
from workbench.quantization.convert import convert
from workbench.quantization.ranges import BINS, ActivationRanges
from workbench.quantization.smoothed_ranges import scaled_histogram, smoothed_fingerprint
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.session import SessionOptions, TorchSession

SMOOTHING = SmoothQuant(alpha=0.7, alpha_by_group={"layers.0.o": 0.3})
ranges_of = functools.cache(seen_ranges.ranges_of)


@pytest.fixture
def model(random_model_dir: Callable[..., Path]) -> Path:
    return random_model_dir(kv_heads=2)


def _write(model: Path, out: Path, smoothing: SmoothQuant | None = SMOOTHING, dtype: str = "float32") -> Path:
    convert_calibrated(model, out, ranges_of(model), CalibratedOptions(dtype, smoothing))
    return out


@pytest.mark.parametrize("smoothing", [None, SMOOTHING, SmoothQuant(groups=())])
def test_it_is_the_model(model: Path, tmp_path: Path, smoothing: SmoothQuant | None) -> None:
    checkpoint = load_checkpoint(_write(model, tmp_path / "out", smoothing))
    verify_checksum(tmp_path / "out")
    source = HFCheckpoint.open(model)
    ids = seen_ranges.some_ids(source.config)
    expected = TorchSession(source.config, source.weights(torch.float64), SessionOptions(torch.float64, "torch"))
    found = TorchSession.open(checkpoint, "torch").logits(ids)
    assert relative_l2(found, expected.logits(ids)) < TOLERANCE[torch.float32]["model"]
    assert checkpoint.smoothing == (SMOOTHING if smoothing == SMOOTHING else None)


@pytest.mark.parametrize("smoothing", [None, SMOOTHING])
def test_its_ranges_are_those_of_its_weights(model: Path, tmp_path: Path, smoothing: SmoothQuant | None) -> None:
    checkpoint = load_checkpoint(_write(model, tmp_path / "out", smoothing))
    stored = calibrated_ranges(checkpoint)
    seen = seen_ranges.ranges_from(checkpoint.config, seen_ranges.taps_of(checkpoint.config, checkpoint.weights))
    for place in ("inputs", "outputs", "keys", "values"):
        found, expected = getattr(stored, place), getattr(seen, place)
        assert set(found) == set(expected)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_histograms_that_no_longer_hold_are_left_out(model: Path, tmp_path: Path) -> None:
    groups = SmoothQuant(groups=("down",))
    kept = set(calibrated_ranges(load_checkpoint(_write(model, tmp_path / "down", groups))).histograms)
    gone = set(ranges_of(model).histograms) - kept
    assert gone == {f"layers.{n}.{name}" for n in (0, 1) for name in ("mlp.down.input", "mlp.gate_up.output")}


QUANTIZATIONS = [
    Recipe(dtype="float32", weights=Int8WeightOnly(), kv_cache=Int8KVCache()),
    Recipe(dtype="float32", weights=Int4WeightOnly(32), keep=("lm_head", "layers.0.mlp.down")),
    Recipe(dtype="float32", kv_cache=Int8KVCache("per_tensor")),
    Recipe(dtype="float32", weights=SmoothQuant()),
    Recipe(dtype="float32", weights=SmoothQuant("per_tensor", "per_tensor"), kv_cache=Int8KVCache(percentile=99.0)),
    Recipe(dtype="float32", weights=SmoothQuant(activation="per_tensor"), keep=()),
]


@pytest.mark.parametrize("recipe", QUANTIZATIONS)
def test_without_smoothing_two_steps_are_one(model: Path, tmp_path: Path, recipe: Recipe) -> None:
    _write(model, tmp_path / "calibrated", None)
    two = quantize_calibrated(tmp_path / "calibrated", recipe, tmp_path / "two")
    if isinstance(recipe.weights, SmoothQuant):
        recipe = dataclasses.replace(recipe, weights=dataclasses.replace(recipe.weights, groups=()))
    one = convert(model, recipe, tmp_path / "one", ranges=ranges_of(model))
    _same_tensors(tmp_path / "one", tmp_path / "two")
    assert one.recipe == two.recipe
    verify_checksum(tmp_path / "two")


@pytest.mark.parametrize("recipe", [recipe for recipe in QUANTIZATIONS if isinstance(recipe.weights, SmoothQuant)])
def test_smoothquant_in_two_steps_is_one(model: Path, tmp_path: Path, recipe: Recipe) -> None:
    _write(model, tmp_path / "calibrated")
    two = quantize_calibrated(tmp_path / "calibrated", recipe, tmp_path / "two")
    assert isinstance(recipe.weights, SmoothQuant)
    weights = dataclasses.replace(recipe.weights, alpha=0.7, alpha_by_group={"layers.0.o": 0.3})
    one = convert(model, dataclasses.replace(recipe, weights=weights), tmp_path / "one", ranges=ranges_of(model))
    _same_tensors(tmp_path / "one", tmp_path / "two")
    assert one.recipe == two.recipe  # it says what was done, not the alpha that the second step named
    assert (two.state, two.smoothing, two.fingerprint) == ("quantized", one.smoothing, one.fingerprint)


def _same_tensors(left: Path, right: Path) -> None:
    one, two = (load_file(folder / "rank0.safetensors") for folder in (left, right))
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_weight_only_of_a_smoothed_checkpoint(model: Path, tmp_path: Path) -> None:
    _write(model, tmp_path / "calibrated")
    made = quantize_calibrated(tmp_path / "calibrated", Recipe(weights=Int8WeightOnly()), tmp_path / "out")
    assert isinstance(made.weights.layers[0].down, Int8Weight)
    assert made.recipe.weights == Int8WeightOnly()
    assert made.smoothing == SMOOTHING


def test_the_dtype_may_change(model: Path, tmp_path: Path) -> None:
    _write(model, tmp_path / "calibrated", dtype="float16")
    made = quantize_calibrated(tmp_path / "calibrated", Recipe(dtype="bfloat16"), tmp_path / "out")
    assert made.weights.layers[0].qkv.weight.dtype == torch.bfloat16
    assert made.state == "dense"


def test_the_plan_is_what_is_written(model: Path, tmp_path: Path) -> None:
    plan = plan_calibrated(model, ranges_of(model), CalibratedOptions("float16", SMOOTHING))
    _write(model, tmp_path / "out", dtype="float16")
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    histograms = 6 * 2 * 2 * BINS * 8  # those that smoothing leaves out
    assert written <= plan.disk_bytes < written + histograms + 100_000


@pytest.mark.parametrize("recipe", QUANTIZATIONS)
def test_the_plan_of_the_second_step_is_what_is_written(model: Path, tmp_path: Path, recipe: Recipe) -> None:
    _write(model, tmp_path / "calibrated")
    plan = plan_quantized(tmp_path / "calibrated", recipe)
    quantize_calibrated(tmp_path / "calibrated", recipe, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= plan.disk_bytes < written + 90_000


def test_progress_and_stopping(model: Path, tmp_path: Path) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.done > event.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_calibrated(model, tmp_path / "out", ranges_of(model), report=stop)
    assert not list(tmp_path.iterdir())


# ---- what is refused


def test_an_output_that_exists(model: Path, tmp_path: Path) -> None:
    _write(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists; add --force"):
        _write(model, tmp_path / "out")
    convert_calibrated(model, tmp_path / "out", ranges_of(model), force=True)
    assert load_checkpoint(tmp_path / "out").smoothing is None


def test_ranges_of_another_model(model: Path, random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the ranges are of model .*; allowed: ranges of model"):
        convert_calibrated(model, tmp_path / "out", ranges_of(random_model_dir(kv_heads=2, seed=1)))


def test_smoothed_ranges_are_of_another_model(model: Path, tmp_path: Path) -> None:
    _write(model, tmp_path / "calibrated")
    smoothed = ActivationRanges.load(tmp_path / "calibrated" / "ranges.safetensors")
    with pytest.raises(CheckpointError, match="the ranges are of model"):
        convert(model, Recipe(weights=SmoothQuant()), tmp_path / "out", ranges=smoothed)


def test_a_layer_that_the_model_lacks(model: Path, tmp_path: Path) -> None:
    options = CalibratedOptions(smoothing=SmoothQuant(alpha_by_group={"layers.9.o": 0.5}))
    with pytest.raises(RecipeError, match=r"alpha_by_group names 'layers\.9\.o'"):
        convert_calibrated(model, tmp_path / "out", ranges_of(model), options)


def test_a_checkpoint_that_is_not_calibrated(model: Path, tmp_path: Path) -> None:
    convert(model, Recipe(weights=Int8WeightOnly()), tmp_path / "int8")
    with pytest.raises(
        CheckpointError, match="int8 is a quantized checkpoint; allowed: a calibrated one; make one with"
    ):
        quantize_calibrated(tmp_path / "int8", Recipe(), tmp_path / "out")


def test_the_calibrated_checkpoint_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    _write(model, tmp_path / "calibrated")
    with pytest.raises(CheckpointError, match="is what it would be made from"):
        quantize_calibrated(tmp_path / "calibrated", Recipe(), tmp_path / "calibrated", force=True)


# ---- the parts


def test_a_smoothing_has_a_fingerprint_of_its_own() -> None:
    assert smoothed_fingerprint("abc", None) == smoothed_fingerprint("abc", SmoothQuant(groups=())) == "abc"
    prints = {
        smoothed_fingerprint(model, how)
        for model in ("abc", "abd")
        for how in (SmoothQuant(), SmoothQuant(alpha=0.5), SmoothQuant(groups=("o",)), SMOOTHING)
    }
    assert len(prints) == 8
    # Granularity and the order of groups change nothing in the weights.
    reordered = SmoothQuant("per_tensor", groups=("down", "gate_up", "o", "qkv"))
    assert smoothed_fingerprint("abc", SmoothQuant()) == smoothed_fingerprint("abc", reordered)


def test_a_histogram_moves_with_its_maximum() -> None:
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    counts[:, 1000] = 5
    counts[1, BINS - 1] = 2
    moved = scaled_histogram(counts, torch.tensor([2.0, 4.0]))
    assert moved.nonzero().tolist() == [[0, 1064], [1, 1128], [1, BINS - 1]]
    assert moved.sum(1).tolist() == [5, 7]
    assert torch.equal(scaled_histogram(counts, torch.ones(2)), counts)


def test_more_positions_are_decided_by_the_first_step(model: Path, tmp_path: Path) -> None:
    options = CalibratedOptions("float32", SMOOTHING, max_positions=8192)
    first = convert_calibrated(model, tmp_path / "calibrated", ranges_of(model), options)
    assert first.config == stretched(HFCheckpoint.open(model).config, 8192)
    second = quantize_calibrated(tmp_path / "calibrated", Recipe(weights=Int8WeightOnly()), tmp_path / "int8")
    assert (second.config, second.recipe.max_positions) == (first.config, 8192)
    with pytest.raises(RecipeError, match=r"max_positions is 9000, but .*calibrated was converted with 8192; leave"):
        quantize_calibrated(tmp_path / "calibrated", Recipe(max_positions=9000), tmp_path / "none")
    assert not (tmp_path / "none").exists()
