"""From folders to a difference, on small random models and on the demo model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tolerances import HF_TAPS
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, LimitError
from workbench.evaluation import compare, memory
from workbench.evaluation.compare import (
    CompareOptions,
    Side,
    compare_folders,
    compare_sides,
    float64_bytes,
    float64_reruns,
    incomparable_sites,
    precision_of,
)
from workbench.evaluation.memory import largest_tensor, parameters
from workbench.model.taps import LAYER_SITES
from workbench.quantization.calibrated import CalibratedOptions, convert_calibrated
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate
from workbench.quantization.convert import convert
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.session import TorchSession

INT8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())


@pytest.fixture
def random_ids(monkeypatch):
    """Random models have no tokenizer: windows of random ids stand in for a text."""

    def ids(_model_dir, options):
        shape = (options.windows, options.length)
        return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(0)), None

    monkeypatch.setattr(compare, "_windows", ids)


def _converted(model_dir, recipe, tmp_path):
    out = tmp_path / "checkpoint"
    convert(model_dir, recipe, out)
    return out


@pytest.mark.parametrize("choices", [{"bias": True}, {"bias": False, "kv_heads": 2}], ids=str)
@pytest.mark.usefixtures("random_ids")
def test_float32_is_the_same_model(random_model_dir, tmp_path, choices):
    model_dir = random_model_dir(**choices)
    checkpoint = _converted(model_dir, Recipe(dtype="float32"), tmp_path)
    diff = compare_folders(model_dir, checkpoint, CompareOptions(windows=2, length=16, float64=True))
    assert diff
    assert diff.precision == "float32"
    assert diff.first_divergence is None
    assert diff.frame["relative_l2"].max() < HF_TAPS[torch.float32]
    assert diff.verdict == "In float64 the models agree: every difference is rounding."
    assert diff.options.reference_name == "Hugging Face float32"


def _ranges(model_dir, folder):
    ids = torch.randint(3, 97, (4, 16), generator=torch.Generator().manual_seed(1))
    return calibrate(model_dir, CalibrationWindows(ids, "random ids", "none"), folder, CalibrationOptions("float32"))


@pytest.mark.parametrize("groups", [("qkv", "o", "gate_up", "down"), ("down",), ()])
@pytest.mark.usefixtures("random_ids")
def test_folded_smoothing_is_no_divergence(random_model_dir, tmp_path, groups):
    """In float32 smoothing changes nothing but the taps that its scale passes through; those are left out."""
    model_dir = random_model_dir(bias=True, kv_heads=2)
    ranges = _ranges(model_dir, tmp_path / "ranges")
    smoothing = SmoothQuant(alpha=0.5, groups=groups)
    convert_calibrated(model_dir, tmp_path / "smooth", ranges, CalibratedOptions("float32", smoothing))
    diff = compare_folders(model_dir, tmp_path / "smooth", CompareOptions(windows=2, length=16))
    assert diff
    assert diff.first_divergence is None
    left_out = set(LAYER_SITES) - set(diff.frame["site"])
    expected = {
        4: {"attention_norm", "attention.qkv", "attention.value", "attention.context"}
        | {"mlp_norm", "mlp.gate_up", "mlp.act"},
        1: {"mlp.gate_up", "mlp.act"},
        0: set(),
    }
    assert left_out == expected[len(groups)]
    # Another alpha's checkpoint would differ where nothing is left out.
    whole = tmp_path / "w8a8"
    convert(model_dir, Recipe(dtype="float32", weights=SmoothQuant(groups=groups)), whole, ranges=ranges)
    assert compare_folders(model_dir, whole, CompareOptions(windows=2, length=16)).precision == "smoothquant"


@pytest.mark.usefixtures("random_ids")
@pytest.mark.parametrize(
    ("recipe", "precision"),
    [
        (Recipe(dtype="bfloat16", weights=Int4WeightOnly(32)), "int4"),
        (Recipe(dtype="float16", kv_cache=Int8KVCache()), "int8 KV cache"),
    ],
)
def test_every_quantization_can_be_compared(random_model_dir, tmp_path, recipe, precision):
    model_dir = random_model_dir(bias=True)
    ranges = _ranges(model_dir, tmp_path / "ranges")
    convert(model_dir, recipe, tmp_path / "checkpoint", ranges=ranges)
    diff = compare_folders(model_dir, tmp_path / "checkpoint", CompareOptions(windows=2, length=16))
    assert diff.precision == precision
    assert diff.first_divergence is None
    assert len(diff.frame["site"].unique()) == len(LAYER_SITES) + 4


@pytest.mark.usefixtures("random_ids")
def test_int8_costs_something_and_the_code_is_right(random_model_dir, tmp_path):
    model_dir = random_model_dir(bias=True)
    events = []
    options = CompareOptions(windows=2, length=16, float64=True)
    diff = compare_folders(model_dir, _converted(model_dir, INT8, tmp_path), options, events.append)
    assert diff.precision == "int8"
    assert diff.frame["relative_l2"].iloc[-1] > 1e-3
    assert "so the code is right" in diff.verdict
    assert diff.frame["float64_same_weights"].max() < HF_TAPS[torch.float64]
    assert [event.task for event in events if event.depth == 0] == ["compare layers"] * 2 + ["compare in float64"] * 2


@pytest.mark.usefixtures("random_ids")
def test_another_model_s_checkpoint_is_refused(random_model_dir, tmp_path):
    checkpoint = _converted(random_model_dir(bias=True), INT8, tmp_path)
    with pytest.raises(CheckpointError, match=r"has intermediate_size 160, the model .* 96; compare a checkpoint with"):
        compare_folders(random_model_dir(intermediate=96), checkpoint)


def test_precision_is_the_weights_kind_or_the_dtype(random_model_dir, tmp_path):
    checkpoint = convert(random_model_dir(bias=True), INT8, tmp_path / "checkpoint")
    assert precision_of(checkpoint) == "int8"
    assert precision_of(replace(checkpoint, recipe=Recipe(dtype="float16"))) == "float16"


def test_a_text_of_one_s_own(demo_model_dir, demo_checkpoint):
    checkpoint = demo_checkpoint(Recipe(dtype="bfloat16"))
    text = "The quick brown fox jumps over the lazy dog. " * 5
    diff = compare_folders(demo_model_dir, checkpoint, CompareOptions(text=text, windows=2, length=24))
    assert diff.tokens == 48
    assert diff.summary.top1 > 0.8
    assert diff.summary.reference_perplexity < 20
    assert diff.first_divergence is None
    with pytest.raises(LimitError, match="the text has 51 tokens, but 4 windows of 24 need 96"):
        compare_folders(demo_model_dir, checkpoint, CompareOptions(text=text, windows=4, length=24))


@pytest.mark.usefixtures("random_ids")
@pytest.mark.parametrize(
    "recipe",
    [Recipe(dtype="float16", weights=SmoothQuant()), Recipe(dtype="float32", kv_cache=Int8KVCache())],
    ids=["W8A8", "INT8 KV cache"],
)
def test_float64_blames_no_code_where_hugging_face_cannot_run_the_weights(random_model_dir, tmp_path, recipe):
    model_dir = random_model_dir(bias=True)
    convert(model_dir, recipe, tmp_path / "checkpoint", ranges=_ranges(model_dir, tmp_path / "ranges"))
    diff = compare_folders(model_dir, tmp_path / "checkpoint", CompareOptions(windows=1, length=16, float64=True))
    assert "float64_same_weights" not in diff.frame
    assert "so rounding is not the cause" in diff.verdict
    assert "the code differs" not in diff.verdict


def test_two_of_ours_are_compared_where_they_can_be(random_model_dir, tmp_path):
    """Models that were smoothed alike on the same ranges share every site; others do not."""
    model_dir = random_model_dir(bias=True)
    ranges = _ranges(model_dir, tmp_path / "ranges")
    recipes = {
        "smooth": Recipe(dtype="float16", weights=SmoothQuant(alpha=0.5)),
        "static": Recipe(dtype="float16", weights=SmoothQuant(alpha=0.5, activation="per_tensor")),
        "other": Recipe(dtype="float16", weights=SmoothQuant(alpha=0.7, groups=("down",))),
        "other, static": Recipe(
            dtype="float16", weights=SmoothQuant(activation="per_tensor", alpha=0.7, groups=("down",))
        ),
        "plain": Recipe(dtype="float16"),
    }
    made = {name: convert(model_dir, recipe, tmp_path / name, ranges=ranges) for name, recipe in recipes.items()}
    assert incomparable_sites(made["smooth"], made["static"]) == frozenset()
    assert incomparable_sites(None, made["plain"]) == frozenset()
    assert incomparable_sites(made["plain"], made["other"]) == {"mlp.gate_up", "mlp.act"}
    # down's scale leaves no trace in the norms, so nothing shows that both were smoothed by the same ranges.
    assert incomparable_sites(made["other"], made["other, static"]) == {"mlp.gate_up", "mlp.act"}
    everything = incomparable_sites(None, made["smooth"])
    assert incomparable_sites(made["other"], made["smooth"]) == everything
    elsewhere = calibrate(
        model_dir,
        CalibrationWindows(torch.full((2, 8), 5), "one id", "none"),
        tmp_path / "elsewhere",
        CalibrationOptions("float32"),
    )
    again = convert(model_dir, recipes["smooth"], tmp_path / "again", ranges=elsewhere)
    assert incomparable_sites(made["smooth"], again) == everything


def test_the_coarser_side_s_precision_judges(random_model_dir, tmp_path):
    model_dir = random_model_dir(bias=True)
    int8 = convert(model_dir, INT8, tmp_path / "int8")
    plain = convert(model_dir, Recipe(dtype="bfloat16"), tmp_path / "plain")
    named = {"q": int8, "p": plain}
    sides = [Side(name, TorchSession.open(each), precision_of(each), each) for name, each in named.items()]
    ids = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    diff = compare_sides(*sides, ids)
    assert diff.precision == "int8"
    assert (diff.options.reference_name, diff.options.candidate_name) == ("q", "p")
    rerun, same_weights = float64_reruns(HFCheckpoint.open(model_dir), (int8, plain), ids[:1])
    assert same_weights is None
    assert rerun.frame["relative_l2"].iloc[-1] > 1e-4


def test_a_rerun_in_float64_counts_hugging_face_s_weights(random_model_dir, tmp_path, monkeypatch):
    model_dir = random_model_dir()
    original, plain = HFCheckpoint.open(model_dir), convert(model_dir, Recipe(dtype="bfloat16"), tmp_path / "plain")
    one = float64_bytes(original, plain)
    assert one == 8 * largest_tensor(original.config)
    assert float64_bytes(original, None) == one + 8 * parameters(original.config)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: one)
    ids = torch.full((1, 4), 5)
    assert not float64_reruns(original, (plain, plain), ids)[0].frame.empty
    with pytest.raises(LimitError, match="the rerun in float64 needs"):
        float64_reruns(original, (None, plain), ids)
