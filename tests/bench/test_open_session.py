from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.random_model import SMALL
from workbench.bench.open_session import MEMORY_FACTOR, OpenedSession, open_session, weight_bytes
from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.folder import EngineConfig, write_engine_config
from workbench.errors import BackendError, CheckpointError, LimitError
from workbench.quantization.convert import convert
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.generate import generate
from workbench.runtime.sampling import SamplingOptions

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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


@pytest.mark.parametrize(("backend", "runs_on"), [("auto", "cpu"), ("cpu", "cpu"), ("torch", "torch")])  # bfloat16
def test_a_checkpoint_opens(checkpoint: Path, backend: str, runs_on: str) -> None:
    opened = open_session(checkpoint, backend)
    assert opened.session.backend == runs_on
    assert f"backend {runs_on}" in opened.reason
    assert opened.session.prefill([[1, 2, 3]]).shape == (1, opened.session.config.vocab_size)


def test_tensorrt_for_a_checkpoint_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(
        BackendError, match=r"which is a checkpoint and not an engine; allowed: cpu, torch, triton; build"
    ):
        open_session(checkpoint, "tensorrt")


def test_an_unknown_backend_names_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(
        BackendError, match="backend 'tensort'; allowed: auto, cpu, torch, triton, tensorrt; did you mean"
    ):
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


# ---- GPUs


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A machine whose GPU runs everything and computes nothing; the checkpoints that it was given."""
    opened: list[object] = []

    def of(held: object) -> SimpleNamespace:
        opened.append(held)
        return SimpleNamespace(backend="triton", limits=held.recipe.build)  # type: ignore[attr-defined]

    module = SimpleNamespace(CudaSession=SimpleNamespace(open=of))
    monkeypatch.setitem(sys.modules, "workbench.runtime.cuda_session", module)
    monkeypatch.setattr("workbench.backends.kernels.require_gpu", lambda *_, **__: None)
    monkeypatch.setattr("workbench.evaluation.memory.free_bytes", lambda _: 1e9)
    return opened


@pytest.fixture
def half(random_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    return convert(random_model_dir(), Recipe(dtype="float16"), tmp_path / "half").folder


@pytest.mark.usefixtures("gpu")
def test_a_float16_recipe_runs_on_the_gpu_of_itself(half: Path, checkpoint: Path) -> None:
    opened = open_session(half)
    assert opened.session.backend == "triton"
    assert opened.reason == "backend triton: this machine's GPU has kernels for the recipe"
    assert opened.session.limits.max_batch_size == sys.maxsize  # a checkpoint's limits are the model's
    assert open_session(checkpoint).reason == (
        "backend cpu: the fast CPU kernels, since the GPU's kernels are fast in float16 and the recipe says bfloat16"
    )
    assert open_session(checkpoint, "triton").reason == "backend triton: as asked"
    assert open_session(half, "cpu").session.backend == "cpu"


@pytest.mark.parametrize(
    ("backend", "device"), [("cpu", "cpu"), ("torch", "cpu"), ("triton", "cuda"), ("tensorrt", "cuda")]
)
def test_what_was_opened_says_whose_memory_it_takes(backend: str, device: str) -> None:
    session: Any = SimpleNamespace(backend=backend)
    assert OpenedSession(session, "").device == device


@pytest.mark.usefixtures("gpu")
def test_weights_that_a_gpu_has_no_room_for_run_on_the_cpu(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.evaluation.memory.free_bytes", lambda _: 1000.0)
    opened = open_session(half)
    assert opened.session.backend == "cpu"
    assert "the fast CPU kernels, since the weights take 0." in opened.reason
    assert opened.reason.endswith("and the GPU has 1e-06 GB free")
    with pytest.raises(LimitError, match=r"the checkpoint half needs .* of memory on cuda; allowed: 1e-06 GB"):
        open_session(half, "triton")


@pytest.mark.usefixtures("gpu")
def test_drawn_weights_that_a_gpu_has_no_room_for_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = write_dummy_checkpoint(tmp_path / "drawn", SMALL, Recipe(weights=Int8WeightOnly()))
    size = weight_bytes(drawn)
    assert size > 0
    monkeypatch.setattr("workbench.evaluation.memory.free_bytes", lambda _: MEMORY_FACTOR * size - 1)
    assert "the fast CPU kernels, since the weights take" in open_session(drawn.folder).reason
    monkeypatch.setattr("workbench.evaluation.memory.free_bytes", lambda _: MEMORY_FACTOR * size)
    assert open_session(drawn.folder).session.backend == "triton"
    monkeypatch.setattr("workbench.evaluation.memory.free_bytes", lambda _: size - 1)
    with pytest.raises(LimitError, match="the checkpoint drawn needs"):
        open_session(drawn.folder, "triton")


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weights=Int4WeightOnly(group_size=32))], ids=["dense", "int4"])
def test_drawn_weights_take_what_files_of_them_would(
    random_model_dir: Callable[..., Path], tmp_path: Path, recipe: Recipe
) -> None:
    written = convert(random_model_dir(), recipe, tmp_path / "written")
    drawn = write_dummy_checkpoint(tmp_path / "drawn", written.config, recipe)
    assert list(drawn.folder.glob("*.safetensors")) == []
    header = 0.1  # names and places, in files this small
    assert weight_bytes(drawn) == pytest.approx(weight_bytes(load_checkpoint(written.folder)), rel=header)


@no_gpu
def test_an_engine_that_cannot_run_gives_way_to_the_gpus_kernels(half: Path, tmp_path: Path, gpu: list[object]) -> None:
    held = load_checkpoint(half)
    folder = tmp_path / "engine"
    folder.mkdir()
    write_engine_config(
        folder, EngineConfig(folder, "tensorrt_rtx", "0", ("sm80",), held.recipe, half, held.checksum), {}
    )
    opened = open_session(folder)
    assert len(gpu) == 1
    assert "backend triton on the engine's checkpoint: the engine cannot run here (" in opened.reason
    assert opened.reason.endswith("; this machine's GPU has kernels for the recipe")
    assert open_session(folder, "triton").reason == "backend triton on the engine's checkpoint: as asked"


def test_without_a_gpu_its_kernels_are_refused(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = "backend 'triton' needs an NVIDIA GPU, and torch finds no CUDA GPU; use the CPU, or use a machine with an"
    with pytest.raises(BackendError, match=told):
        open_session(half, "triton")
    assert open_session(half).reason == "backend cpu: the fast CPU kernels, since torch finds no CUDA GPU"


def test_an_old_gpu_is_named(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Old GPU")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: object())
    with pytest.raises(
        BackendError,
        match=r"needs a newer GPU, and Old GPU has compute capability 7\.5; allowed: 8\.0 \(A100\) and newer",
    ):
        open_session(half, "triton")
    assert open_session(half).reason == "backend cpu: the fast CPU kernels, since Old GPU has compute capability 7.5"


def test_a_gpu_without_a_compiler_says_what_to_install(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: object())
    monkeypatch.setattr("workbench.backends.kernels.nvrtc.find_nvrtc", lambda: None)
    with pytest.raises(
        BackendError, match="needs a compiler at run time, and NVRTC, CUDA's run-time compiler, was not"
    ):
        open_session(half, "triton")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(dtype="float16"),
        Recipe(dtype="float16", weights=Int8WeightOnly()),
        Recipe(dtype="float16", weights=Int4WeightOnly(group_size=32)),
        Recipe(dtype="float16", weights=SmoothQuant(groups=())),
    ],
    ids=["dense", "int8", "int4", "w8a8"],
)
def test_every_kind_of_checkpoint_runs_on_the_gpu(
    random_model_dir: Callable[..., Path], tmp_path: Path, recipe: Recipe
) -> None:
    pytest.importorskip("triton", reason="needs triton")
    folder = convert(random_model_dir(), recipe, tmp_path / "made").folder
    prompts = [[1, 2, 3, 4], [5, 6]]
    fast, plain = (open_session(folder, backend).session for backend in ("auto", "torch"))
    assert fast.backend == "triton"
    for options in (SamplingOptions(), SamplingOptions(top_k=8, top_p=0.9, repetition_penalty=1.2, random_seed=5)):
        rows = generate(fast, prompts, 8, eos_token_ids=[], sampling=options)
        assert rows == generate(fast, prompts, 8, eos_token_ids=[], sampling=options)
        assert [len(row) for row in rows] == [8, 8]
    torch.testing.assert_close(fast.prefill(prompts).cpu(), plain.prefill(prompts), rtol=0.1, atol=0.1)
