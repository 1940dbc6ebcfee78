from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import tradeoff
from workbench.evaluation.tradeoff import TradeoffOptions, bootstrap_interval, compare_recipes
from workbench.progress import ProgressEvent
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate
from workbench.quantization.convert import convert
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

INT8 = Recipe(dtype="float32", weights=Int8WeightOnly())


@pytest.fixture
def model_dir(random_model_dir: Callable[..., Path]) -> Path:
    return random_model_dir(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=96, vocab=101, bias=True)


def some_windows(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 101, (count, 24), generator=torch.Generator().manual_seed(seed))


def test_coarser_quantization_costs_more(model_dir: Path, tmp_path: Path) -> None:
    data = CalibrationWindows(some_windows(6, 1), "random ids", "none")
    ranges = calibrate(model_dir, data, tmp_path / "ranges", CalibrationOptions(dtype="float32"))
    recipes = {
        "float32 again": Recipe(dtype="float32"),
        "int8": Recipe(dtype="float32", weights=Int8WeightOnly()),
        "int4": Recipe(dtype="float32", weights=Int4WeightOnly(32)),
        "w8a8": Recipe(dtype="float32", weights=SmoothQuant(activation="per_tensor")),
        "kv": Recipe(dtype="float32", kv_cache=Int8KVCache()),
    }
    events: list[ProgressEvent] = []
    frame = compare_recipes(model_dir, recipes, some_windows(5, 2), ranges, report=events.append)
    assert list(frame["recipe"]) == ["float32", *recipes]
    kl = dict(zip(frame["recipe"], frame["kl"], strict=True))
    assert kl["float32"] == 0
    assert abs(kl["float32 again"]) < 1e-9
    assert 0 < kl["int8"] < kl["int4"]
    assert kl["w8a8"] > kl["float32 again"]
    assert kl["kv"] > kl["float32 again"]
    assert ((frame["kl_low"] <= frame["kl"]) & (frame["kl"] <= frame["kl_high"])).all()
    assert ((frame["change_low"] <= frame["change"]) & (frame["change"] <= frame["change_high"])).all()
    again = frame.set_index("recipe").loc["float32 again"]
    assert again["top1"] == 1
    assert abs(again["change"]) < 1e-6
    assert (events[-1].done, events[-1].total) == (30, 30)


def test_a_recipe_without_its_ranges_is_refused(model_dir: Path) -> None:
    with pytest.raises(WorkbenchError, match="workbench calibrate"):
        compare_recipes(model_dir, {"w8a8": Recipe(weights=SmoothQuant())}, some_windows(2, 0))


def test_the_interval_is_that_of_the_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    low, high = bootstrap_interval(values)
    error = float(values.std() / 400**0.5)
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.05)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.05)


def test_files_lie_where_they_are_asked_to_and_go_away(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # the system's folder is not to be touched
    folder = tmp_path / "work" / "here"
    seen: list[list[str]] = []

    def look(event: ProgressEvent) -> None:
        if event.depth == 0 and event.task == "judge":
            seen.append(sorted(path.name for path in folder.glob("*/*")))

    options = TradeoffOptions(folder=folder)
    compare_recipes(model_dir, {"int8": INT8}, some_windows(1, 0), options=options, report=look)
    assert seen == [[], ["candidate"]]  # the reference is not converted, and its logits' file has no name
    assert list(folder.iterdir()) == []


def test_checkpoints_may_come_from_elsewhere(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert(model_dir, INT8, tmp_path / "made")
    expected = compare_recipes(model_dir, {"int8": INT8}, some_windows(2, 0))
    monkeypatch.setattr(tradeoff, "convert", None)
    options = TradeoffOptions(convert=lambda recipe, _report: {INT8: made}[recipe])
    found = compare_recipes(model_dir, {"int8": INT8}, some_windows(2, 0), options=options)
    assert found.equals(expected)


def test_a_stop_is_heard_while_converting(model_dir: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []

    def stop(event: ProgressEvent) -> None:
        events.append(event)
        if event.depth > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        compare_recipes(
            model_dir, {"int8": INT8}, some_windows(2, 0), options=TradeoffOptions(folder=tmp_path), report=stop
        )
    last, conversion = events[-2:]
    assert last.task.startswith("judge: converting int8")
    assert (last.done, last.total, last.depth, conversion.depth) == (2, 4, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_original_in_float32_loses_nothing_of_a_narrower_type(random_model_dir: Callable[..., Path]) -> None:
    folder = random_model_dir(dtype="bfloat16")
    session = tradeoff._original_session(HFCheckpoint.open(folder), TradeoffOptions())
    assert session.dtype == torch.float32
    assert session.weights.layers[0].down.weight.dtype == torch.bfloat16
    frame = compare_recipes(folder, {"again": Recipe(dtype="float32")}, some_windows(2, 0) % 97)
    assert frame["kl"].abs().max() < 1e-9
