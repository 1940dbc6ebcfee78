"""What enters attention, kept: the very taps of a run, whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.quantization.calibrated_models import random_windows
from tests.tolerances import TOLERANCE, relative_l2
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import BackendError, Cancelled, CheckpointError, LimitError, RecipeError
from workbench.model.weights import DenseWeight
from workbench.progress import ProgressEvent
from workbench.quantization.attention_inputs import (
    ATTENTION_INPUTS_FILE,
    AttentionInputs,
    CollectOptions,
    collect_attention_inputs,
)
from workbench.runtime.session import SessionOptions, TorchSession


@pytest.fixture(scope="module")
def source(random_model_dir: Callable[..., Path]) -> HFCheckpoint:
    return HFCheckpoint.open(random_model_dir(kv_heads=2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layers_taps(source: HFCheckpoint, tmp_path: Path, dtype: str) -> None:
    windows, events = random_windows(9), []
    path = collect_attention_inputs(
        source, windows, tmp_path / "new" / "folder", CollectOptions(dtype), report=events.append
    )
    wanted, taps = getattr(torch, dtype), {}
    session = TorchSession(source.config, source.weights(wanted), SessionOptions(wanted, backend="torch"))
    session.logits(windows, on_tap=taps.__setitem__)
    inputs = AttentionInputs(path.parent)
    for layer in range(2):
        found = inputs(layer)
        assert found.shape == (9, 12, (4 + 2 * 2) * 16)
        assert found.dtype == wanted
        assert relative_l2(found, taps[f"layers.{layer}.attention.qkv"]) < TOLERANCE[wanted]["model"]
    assert [path.name for path in path.parent.iterdir()] == [ATTENTION_INPUTS_FILE]
    assert (events[0].task, events[0].unit, events[-1].done, events[-1].total) == ("attention inputs", "layers", 2, 2)


def test_a_stopped_run_leaves_what_was_there(source: HFCheckpoint, tmp_path: Path) -> None:
    def stop(_: ProgressEvent) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        collect_attention_inputs(source, random_windows(1), tmp_path, report=stop)
    assert list(tmp_path.iterdir()) == []
    path = collect_attention_inputs(source, random_windows(1), tmp_path)
    before = path.read_bytes()
    with pytest.raises(Cancelled):
        collect_attention_inputs(source, random_windows(2), tmp_path, report=stop)
    assert path.read_bytes() == before
    collect_attention_inputs(source, random_windows(2), tmp_path)
    assert AttentionInputs(path)(0).shape[0] == 2


def test_activations_that_are_no_numbers(source: HFCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = source.layers(torch.float32)[0]
    weight = layer.qkv.weight.clone()
    weight[5] = torch.inf
    broken = dataclasses.replace(layer, qkv=DenseWeight(weight))
    monkeypatch.setattr(HFCheckpoint, "layers", lambda *_: [broken, broken])
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.qkv holds NaN or infinite activations; take"):
        collect_attention_inputs(source, random_windows(1), tmp_path, CollectOptions("float32"))
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


def test_windows_that_do_not_fit(source: HFCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="token id 97; allowed: 0 to 96"):
        collect_attention_inputs(source, torch.tensor([[97, 1]]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_such_dtype_or_device(source: HFCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"dtype of attention inputs is 'int8'; allowed: float32, .*"):
        collect_attention_inputs(source, random_windows(1), tmp_path, CollectOptions("int8"))
    with pytest.raises(BackendError, match="device 'tpu'"):
        collect_attention_inputs(source, random_windows(1), tmp_path, CollectOptions(device="tpu"))


def test_another_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attention_inputs\.safetensors is missing"):
        AttentionInputs(tmp_path / ATTENTION_INPUTS_FILE)
    save_file({"layers.0.attention.qkv": torch.zeros(1, 2, 3)}, tmp_path / ATTENTION_INPUTS_FILE)
    with pytest.raises(CheckpointError, match="is no file of attention inputs of version 1; collect them again"):
        AttentionInputs(tmp_path)


def test_a_layer_beyond_the_last(source: HFCheckpoint, tmp_path: Path) -> None:
    inputs = AttentionInputs(collect_attention_inputs(source, random_windows(1), tmp_path))
    with pytest.raises(RecipeError, match="the model has no layer 2; allowed: 0 to 1"):
        inputs(2)
