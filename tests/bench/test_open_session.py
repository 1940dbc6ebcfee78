from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workbench.bench.open_session import open_session
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.folder import EngineConfig, write_engine_config
from workbench.errors import BackendError, CheckpointError, LimitError
from workbench.quantization.convert import convert
from workbench.recipe import BuildLimits, Int8WeightOnly, Recipe

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def checkpoint(random_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    recipe = Recipe(dtype="bfloat16", weights=Int8WeightOnly())
    return convert(random_model_dir(), recipe, tmp_path / "checkpoint").folder


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    """An engine folder whose plan no machine can run: what is tested is what happens instead."""
    held = load_checkpoint(checkpoint)
    recipe = dataclasses.replace(held.recipe, build=BuildLimits(max_batch_size=1, max_input_len=4, max_output_len=4))
    folder = tmp_path / "engine"
    folder.mkdir()
    config = EngineConfig(folder, "tensorrt_rtx", "0.0.0", ("sm80",), recipe, checkpoint, held.checksum)
    write_engine_config(folder, config, {})
    return folder


@pytest.mark.parametrize(("backend", "runs_on"), [("auto", "cpu"), ("cpu", "cpu"), ("torch", "torch")])
def test_a_checkpoint_opens(checkpoint: Path, backend: str, runs_on: str) -> None:
    opened = open_session(checkpoint, backend)
    assert opened.session.backend == runs_on
    assert f"backend {runs_on}" in opened.reason
    assert opened.session.prefill([[1, 2, 3]]).shape == (1, opened.session.config.vocab_size)


def test_tensorrt_for_a_checkpoint_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(BackendError, match=r"which is a checkpoint and not an engine; allowed: cpu, torch; build"):
        open_session(checkpoint, "tensorrt")


def test_an_unknown_backend_names_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(BackendError, match="backend 'tensort'; allowed: auto, cpu, torch, tensorrt; did you mean"):
        open_session(checkpoint, "tensort")


@no_gpu
def test_an_engine_falls_back_to_its_checkpoint_and_says_why(engine: Path) -> None:
    opened = open_session(engine)
    assert opened.session.backend == "cpu"
    assert "backend cpu on the engine's checkpoint: the engine cannot run here (" in opened.reason
    with pytest.raises(LimitError, match="max_input_len 4"):
        opened.session.prefill([[1, 2, 3, 4, 5]])


@no_gpu
def test_an_engine_asked_for_by_name_says_what_is_missing(engine: Path) -> None:
    with pytest.raises(BackendError, match="cpu"):
        open_session(engine, "tensorrt")


def test_an_engine_runs_on_another_backend_as_asked(engine: Path) -> None:
    opened = open_session(engine, "torch")
    assert opened.session.backend == "torch"
    assert opened.reason == "backend torch on the engine's checkpoint: as asked"


def test_an_engine_without_its_checkpoint_is_refused(engine: Path, checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="no longer there; put the checkpoint back"):
        open_session(engine, "cpu")


def test_an_engine_whose_checkpoint_changed_is_refused(engine: Path, random_model_dir: Callable[..., Path]) -> None:
    convert(random_model_dir(), Recipe(dtype="float16"), engine.parent / "checkpoint", force=True)
    with pytest.raises(CheckpointError, match=r"has changed since engine .* build the engine again"):
        open_session(engine, "cpu")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        open_session(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; allowed: a folder written by"):
        open_session(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"workbench": {"kind": "recipe"}}), json.dumps({})])
def test_another_kind_of_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="neither an engine nor a checkpoint of the workbench"):
        open_session(tmp_path)
