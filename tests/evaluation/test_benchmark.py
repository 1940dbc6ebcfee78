from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.checkpoint.available_memory import fits
from workbench.checkpoint.dummy_model import DummyModel
from workbench.errors import LimitError, ResourceError, WorkbenchError
from workbench.evaluation import benchmark as benchmarking
from workbench.evaluation.benchmark import BenchmarkOptions, benchmark
from workbench.model.presets import PRESETS
from workbench.progress import ProgressEvent
from workbench.runtime.needs import CPU_BYTES

SHORT = BenchmarkOptions(threads=2, rounds=2, prompt_len=3, decode_tokens=2, prefill_len=8)


def test_every_mode_is_timed_for_decode_and_prefill(random_model_dir: Callable[..., Path]) -> None:
    events: list[ProgressEvent] = []
    threads = torch.get_num_threads()
    result = benchmark(random_model_dir(), SHORT, events.append)
    assert torch.get_num_threads() == threads
    frame = result.frame
    assert list(zip(frame["mode"], frame["task"], frame["hf_dtype"], strict=True)) == [
        (mode, task, dtype)
        for mode, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "bfloat16"))
        for task in ("decode", "prefill")
    ]
    assert (frame[["hf_ms", "workbench_ms"]] > 0).all(axis=None)
    assert (frame["ratio_low"] <= frame["ratio"]).all()
    assert (frame["ratio"] <= frame["ratio_high"]).all()
    assert set(frame["tokens"]) == {2, 8}
    assert json.loads(json.dumps(result.to_dict()))["options"]["threads"] == 2
    assert [event.done for event in events if event.task == "benchmark: int8 prefill"] == [0, 1, 2, 3]


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(WorkbenchError, match=r"benchmark mode 'float23'; allowed: float32, .*did you mean 'float32'"):
        BenchmarkOptions(modes=("float23",))


def _way_out(source: Path | DummyModel, available: int, modes: tuple[str, ...] = ("float32", "bfloat16")) -> str:
    """What is told where so many bytes are available; nothing may have been timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarking, "available_bytes", lambda: available)
        with pytest.raises(ResourceError, match=r"^mode \w+ needs about [\d.]+ GB of memory and ") as told:
            benchmark(source, BenchmarkOptions(modes=modes))
    assert told.value.fix is not None
    return told.value.fix


def test_what_does_not_fit_is_told_what_does(random_model_dir: Callable[..., Path]) -> None:
    dummies = DummyModel(PRESETS["internlm-7b"])
    room = benchmarking._needed_bytes(dummies, "float32")
    assert _way_out(dummies, room) == "what fits: --modes bfloat16 int8 float16, or --n_layer 30"
    ways, _, layers_that_fit = _way_out(dummies, room // 3).rpartition(" ")
    assert ways == "what fits: --n_layer"
    layers = int(layers_that_fit)
    in_layers = [replace(dummies, config=replace(dummies.config, num_layers=n)) for n in (layers, layers + 1)]
    assert [fits(benchmarking._needed_bytes(each, "float32"), room // 3) for each in in_layers] == [True, False]
    assert _way_out(dummies, 10**9) == "measure on a machine with more memory"
    folder = random_model_dir()  # has its own number of layers, and next to no weights
    assert _way_out(folder, CPU_BYTES) == "measure on a machine with more memory"


def test_no_rounds_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="benchmark rounds 0"):
        BenchmarkOptions(rounds=0)


def test_a_prompt_beyond_the_models_positions_is_refused(random_model_dir: Callable[..., Path]) -> None:
    for lengths in ({"prefill_len": 100_000}, {"decode_tokens": 100_000}):
        with pytest.raises(LimitError, match="max_position_embeddings"):
            benchmark(random_model_dir(), BenchmarkOptions(**lengths))
