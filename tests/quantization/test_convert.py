"""Conversion: what it refuses, what it tells, what it leaves behind, what it takes."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.checkpoint.breakable import Breakable
from tests.quantization.measure_conversion_memory import FOUR_GB, measure_in_fresh_process
from workbench.checkpoint.cast import WeightWarning
from workbench.checkpoint.demo import write_random_model
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import load_checkpoint
from workbench.errors import Cancelled, CheckpointError, LimitError, RecipeError
from workbench.model.rotary import stretched
from workbench.model.weights import Int8Weight
from workbench.progress import ProgressEvent
from workbench.quantization import quantize
from workbench.quantization.convert import convert, plan_conversion
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe

INT8 = Recipe(weights=Int8WeightOnly())


@pytest.fixture
def model(tmp_path: Path, random_model_dir: Callable[..., Path]) -> Breakable:
    shutil.copytree(random_model_dir(kv_heads=2), tmp_path / "model")
    return Breakable(tmp_path / "model", "model.safetensors")


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(dtype="float32"), INT8, Recipe(weights=Int8WeightOnly(), keep=())])
def test_the_plan_is_what_is_written(model: Breakable, tmp_path: Path, recipe: Recipe) -> None:
    plan = plan_conversion(model.folder, recipe)
    convert(model.folder, recipe, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= plan.disk_bytes < written + 70_000
    # 2 layers of (4 + 4) * 16 * 64 + 64 * 64 + 3 * 64 * 160 weights, 128 + 64 biases and two norms; 2 * 97 * 64 + 64.
    assert plan.parameters == 2 * (8192 + 4096 + 30720 + 192 + 128) + 12416 + 64


def test_small_chunks_give_the_same_file(model: Breakable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(model.folder, INT8, tmp_path / "whole")
    monkeypatch.setattr(quantize, "CHUNK_VALUES", 300)
    pieces = convert(model.folder, INT8, tmp_path / "pieces")
    assert pieces.checksum == whole.checksum


def test_progress_is_in_bytes_of_the_source(model: Breakable, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    convert(model.folder, INT8, tmp_path / "out", report=events.append)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == events[-1].total
    assert events[-1].unit == "B"


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled])
def test_stopping_leaves_nothing(model: Breakable, tmp_path: Path, error: type[BaseException]) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.done > event.total / 2:
            raise error

    with pytest.raises(error):
        convert(model.folder, INT8, tmp_path / "out", report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_output(model: Breakable, tmp_path: Path) -> None:
    convert(model.folder, INT8, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists; add --force"):
        convert(model.folder, Recipe(), tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").recipe.weights == Int8WeightOnly()
    convert(model.folder, Recipe(), tmp_path / "out", force=True)
    assert load_checkpoint(tmp_path / "out").recipe.weights is None


def test_a_small_disk(model: Breakable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="bytes and the disk has 1,000 free; make room"):
        convert(model.folder, INT8, tmp_path / "out")


@pytest.mark.parametrize(("out", "told"), [(".", "is what it would be made from"), ("..", "holds .*, which it would")])
def test_the_model_is_never_overwritten(model: Breakable, out: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{told}.*; give another output$"):
        convert(model.folder, INT8, model.folder / out, force=True)


def test_a_checkpoint_may_lie_inside_its_model(model: Breakable) -> None:
    before = HFCheckpoint.open(model.folder).fingerprint()
    convert(model.folder, INT8, model.folder / "int8" / "1-gpu")
    assert HFCheckpoint.open(model.folder).fingerprint() == before


def test_a_layer_that_the_model_lacks(model: Breakable, tmp_path: Path) -> None:
    recipe = Recipe(weights=Int8WeightOnly(), keep=("layers.2.mlp.down",))
    with pytest.raises(
        RecipeError, match=r"keep names 'layers\.2\.mlp\.down', which this model.*; allowed: layers 0 to 1"
    ):
        plan_conversion(model.folder, recipe)
    with pytest.raises(RecipeError):
        convert(model.folder, recipe, tmp_path / "out")


def test_a_missing_tensor_is_found_by_the_plan(model: Breakable) -> None:
    model.edit_tensors(lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.norm\.weight' is missing"):
        plan_conversion(model.folder, INT8)


@pytest.fixture(scope="module")
def four_gb_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in InternLM-7B's widths."""
    folder = tmp_path_factory.mktemp("four_gb") / "model"
    write_random_model(folder, FOUR_GB)
    return folder


def _spoil(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[5:7].fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.bias"])
def test_values_that_are_no_numbers_are_told(model: Breakable, tmp_path: Path, name: str, value: float) -> None:
    model.edit_tensors(_spoil(name, value))
    with pytest.warns(WeightWarning, match=rf"model\.safetensors: tensor '{name}' holds 2 values that are NaN or inf"):
        convert(model.folder, INT8, tmp_path / "out")


@pytest.mark.parametrize("recipe", [INT8, Recipe(weights=Int4WeightOnly(32))], ids=["int8", "int4"])
def test_values_that_are_no_numbers_are_not_quantized(
    model: Breakable, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The two values lie in different chunks of rows: both are counted.
    monkeypatch.setattr(quantize, "CHUNK_VALUES", 64)
    name = "model.layers.1.mlp.up_proj.weight"
    model.edit_tensors(lambda tensors: tensors[name][3:5, 0].fill_(torch.nan))
    match = rf"model\.safetensors: tensor '{name}' holds 2 values that are NaN or infinite, which cannot be quantized"
    with pytest.raises(CheckpointError, match=match):
        convert(model.folder, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = replace(recipe, keep=("layers.1.mlp.gate_up",))
    with pytest.warns(WeightWarning, match=f"'{name}' holds 2 values"):
        convert(model.folder, kept, tmp_path / "out")


def test_a_sound_model_gives_no_warning(model: Breakable, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightWarning)
        convert(model.folder, INT8, tmp_path / "out")


def test_a_value_that_float16_cannot_hold(model: Breakable, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    model.edit_tensors(_spoil(name, 1e5))
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' holds 100000, which torch\.float16 cannot hold"):
        convert(model.folder, Recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # INT8 with a float32 scale holds it.
    down = convert(model.folder, INT8, tmp_path / "out").weights.layers[0].down
    assert isinstance(down, Int8Weight)
    assert down.weight_scale[0] == torch.tensor(1e5) / 127


def test_shards_convert_alike(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    whole = convert(random_model_dir(), INT8, tmp_path / "whole").weights
    shards = convert(random_model_dir(shard_bytes=50_000), INT8, tmp_path / "shards").weights
    assert isinstance(whole.layers[1].qkv, Int8Weight)
    assert isinstance(shards.layers[1].qkv, Int8Weight)
    assert torch.equal(whole.layers[1].qkv.weight, shards.layers[1].qkv.weight)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize("kind", ["int8", "int4_kv"])
def test_memory_does_not_grow_with_the_model(four_gb_model: Path, tmp_path: Path, kind: str) -> None:
    figures = measure_in_fresh_process(kind, four_gb_model, tmp_path / "out")
    assert figures["source_bytes"] > 4e9
    assert figures["peak_anonymous_bytes"] < figures["allowed_bytes"]
    assert figures["peak_anonymous_bytes"] < 1.2 * figures["planned_memory_bytes"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize("kind", ["smoothquant_kv", "calibrated"])
def test_smoothing_takes_the_memory_of_two_layers(four_gb_model: Path, tmp_path: Path, kind: str) -> None:
    figures = measure_in_fresh_process(kind, four_gb_model, tmp_path / "out")
    assert figures["peak_anonymous_bytes"] < 2.5e9
    assert figures["peak_anonymous_bytes"] < 1.2 * figures["planned_memory_bytes"]


def test_more_positions_change_the_config_and_no_weight(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = random_model_dir(max_positions=64)
    plain = convert(model, Recipe(dtype="float32"), tmp_path / "plain")
    wide = convert(model, Recipe(dtype="float32", max_positions=128), tmp_path / "wide")
    assert wide.config == stretched(plain.config, 128)
    assert (tmp_path / "wide" / "rank0.safetensors").read_bytes() == (
        tmp_path / "plain" / "rank0.safetensors"
    ).read_bytes()
    with pytest.raises(LimitError, match="max_positions 63; allowed: 64 to"):
        convert(model, Recipe(max_positions=63), tmp_path / "none")
    assert not (tmp_path / "none").exists()
