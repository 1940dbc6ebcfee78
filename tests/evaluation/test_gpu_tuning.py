"""Which products of a model are tuned, and what is remembered of them. Timing is not tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from tests.evaluation.small_gpu_model import SMALL
from workbench.backends.kernels import tuning
from workbench.backends.kernels.int8_gemm import Int8Tiles
from workbench.backends.kernels.skinny_gemm import Tiles
from workbench.evaluation import gpu_tuning
from workbench.evaluation.gpu_tuning import Task, tasks, tune_model
from workbench.progress import ProgressEvent

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_every_weight_type_and_bucket_stands_once() -> None:
    found = tasks(("int4", "w8a8", "w8a8+kv8"), (1, 3, 8, 33, 64))
    assert len(found) == len(set(found)) == 3 + 2 * 4 * 3
    assert {task.columns for task in found} == {1, 8, 64}
    assert {task.mode for task in found} == {"float16", "int4", "w8a8"}
    assert [task.name for task in found if task.mode == "float16"] == ["lm_head"] * 3


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """A GPU whose times are made up: a norm of its own is faster for the head, the library for wide INT4."""
    asked: list[Any] = []

    def tune(linear: Any, columns: int, *, glu: bool, overlap: bool, norm: bool = False) -> tuple[Tiles, float]:
        assert overlap  # as on every GPU from compute capability 9.0 on
        asked.append((linear.kind.name, linear.rows, linear.k, columns, glu, norm))
        return Tiles(2 if norm else 1, 1, 8, 1), 9.0 if norm and linear.rows == 320 else 4.0 if norm else 5.0

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_tuning, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(gpu_tuning, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_tuning, "choose_wide", lambda *_: None)
    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(tuning, "tune_int8", lambda *_, **__: (Int8Tiles(32, 128, 4, 4), 7.0))
    monkeypatch.setattr(tuning, "library_us", lambda *_, **__: 3.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    tuning._table.cache_clear()
    yield asked
    tuning._table.cache_clear()


def test_what_is_measured_is_remembered_at_once(measured: list[Any], tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    result = tune_model("small", SMALL, ("int4", "w8a8"), (1, 64), events.append)
    kept = json.loads((tmp_path / "tiles.json").read_text())["A GPU"]
    assert kept == {product.key: list(product.tiles) for product in result.products}
    assert kept["int4 768x256 columns 1"] == [1, 1, 8, 1, 1, 0]
    assert kept["norm int4 768x256 columns 1"] == [2, 1, 8, 1, 1, 0]  # faster with its norm
    assert kept["norm float16 320x256 columns 1"] == []  # slower
    assert kept["int4 704x256 columns 64 swiglu"] == []  # the library is
    assert kept["int8_gemm w8a8 256x352 columns 64"] == [32, 128, 4, 4]
    assert not any("float16" in key and "columns 64" in key for key in kept)
    assert ("INT4", 704, 256, 1, True, True) in measured
    assert [event.done for event in events] == list(range(events[-1].total + 1))
    by_key = {product.key: product for product in result.products}
    head = by_key["float16 320x256 columns 1"]
    assert (head.name, head.time_us) == ("lm_head", 5.0)
    assert head.bytes_per_s == pytest.approx(320 * 256 * 2 / 5e-6)
    assert by_key["int4 704x256 columns 64 swiglu"].time_us == 3.0


def test_rows_that_the_wide_kernel_multiplies_are_left_to_it(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tuning, "choose_wide", lambda *_: "tiles")
    tune_model("small", SMALL, ("int4", "w8a8"), (1, 8, 64))
    # Those of 8 rows serve fewer as well.
    assert {columns for *_, columns, _, _ in measured} == {1, 8}


def test_only_inputs_of_norms_are_measured_with_them() -> None:
    assert [name for name in ("qkv", "o", "gate_up", "down", "lm_head") if Task("int4", name, 1).after_norm] == [
        "qkv", "gate_up", "lm_head"
    ]  # fmt: skip
    assert not Task("int4", "qkv", 8).after_norm


@pytest.mark.gpu
@needs_gpu
def test_tiles_are_measured_and_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    config = replace(SMALL, hidden_size=2048, intermediate_size=4096, num_heads=16, num_kv_heads=16, head_dim=128)
    tuning._table.cache_clear()
    result = tune_model("small", config, ("int4",), (1, 16))
    assert all(product.time_us > 0 for product in result.products)
    assert {product.name for product in result.products} == {"qkv", "o", "gate_up", "down", "lm_head"}
    assert json.loads((tmp_path / "tiles.json").read_text())[result.gpu]
