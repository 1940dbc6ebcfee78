"""From folders to a difference, on small random models and on the demo model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tolerances import HF_TAPS
from workbench.errors import CheckpointError, LimitError
from workbench.evaluation import compare
from workbench.evaluation.compare import CompareOptions, compare_folders, precision_of
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe

INT8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())


@pytest.fixture
def random_ids(monkeypatch):
    """Random models have no tokenizer: windows of random ids stand in for a text."""

    def ids(_model_dir, options):
        shape = (options.windows, options.length)
        return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(compare, "_window_ids", ids)


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
    assert [event.task for event in events] == ["compare layers"] * 2 + ["compare in float64"] * 2


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
