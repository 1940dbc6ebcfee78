"""The GPU benchmark: what it counts, what it refuses and what it draws; its times are nobody's business here."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from tests.evaluation.small_gpu_model import SMALL
from workbench.errors import BackendError, LimitError, WorkbenchError
from workbench.evaluation import gpu_benchmark as benchmarking
from workbench.evaluation import gpu_reference
from workbench.evaluation.gpu_benchmark import Listeners, dummy_weights, gpu_benchmark, timed_config
from workbench.evaluation.gpu_options import GPU_MODES, GpuBenchmarkOptions
from workbench.evaluation.gpu_reference import COMPILED_LENGTHS, EAGER_LENGTHS
from workbench.evaluation.gpu_results import GpuBenchmarkResult
from workbench.evaluation.gpu_work import prefill_flops, step_flops
from workbench.model.presets import PRESETS
from workbench.model.weights import DenseWeight, Int4GroupWeight, SmoothQuantWeight
from workbench.recipe import BuildLimits

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_model_is_timed_with_room_for_the_longest_case_and_plain_rope() -> None:
    short, long = GpuBenchmarkOptions(contexts=(128,)), GpuBenchmarkOptions(contexts=(8, 40000), steps=10)
    read = GpuBenchmarkOptions(contexts=(8,), prefills=((1, 50000),))
    config = PRESETS["internlm2-7b"]
    assert config.rope_scaling is not None
    assert timed_config(config, short) == replace(config, rope_scaling=None)
    assert timed_config(config, long).max_position_embeddings >= 40010
    assert timed_config(config, read).max_position_embeddings > 50000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("int5",)}, "benchmark mode 'int5'; allowed: float16, int8, int4, w8a8"),
        ({"batches": (0,)}, r"benchmark batches \(0,\); allowed: whole numbers from 1"),
        ({"contexts": ()}, r"benchmark contexts \(\)"),
        ({"steps": 0}, r"benchmark steps \(0,\)"),
        ({"prefills": ((0, 4),)}, "benchmark prefill 0x4; allowed: whole numbers from 1"),
    ],
)
def test_options_that_cannot_be_timed_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        GpuBenchmarkOptions(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(BackendError, match="no CUDA GPU"):
        gpu_benchmark("small", SMALL)


def test_dummy_weights_are_those_of_the_modes_recipe() -> None:
    def layer(mode: str) -> Any:
        return dummy_weights(SMALL, GPU_MODES[mode]).layers[1]

    weights = dummy_weights(SMALL, GPU_MODES["int4"])
    assert len(weights.layers) == 2
    assert isinstance(weights.lm_head, DenseWeight)
    int4 = layer("int4")
    assert isinstance(int4.down, Int4GroupWeight)
    assert int4.down.weight.shape == (256, 176)
    assert int4.down.weight_scale.shape == (256, 3)  # 352 = 2 * 128 + 96
    assert int4.qkv.bias is not None
    assert int4.kv_scales is None
    assert isinstance(layer("w8a8+kv8").o, SmoothQuantWeight)
    assert layer("w8a8+kv8").kv_scales is not None
    assert isinstance(layer("float16+kv8").o, DenseWeight)


# ---- a run without a GPU: sessions that take no time

QUICK = GpuBenchmarkOptions(
    modes=("float16", "int4"), batches=(1, 16), contexts=(8, 24), prefills=((2, 16),), steps=4
)  # fmt: skip


class _Session:
    """Refuses 16 rows of 24 tokens; a step takes 2 ms, a prefill 5."""

    kv_bytes_per_token = 10
    opened = 0

    def __init__(self, *_: Any) -> None:
        type(self).opened += 1
        self.ops = SimpleNamespace(weight_bytes=1000)

    def resize(self, _: BuildLimits) -> None: ...

    def close(self) -> None: ...


def _decode(_: _Session, case: Any) -> float:
    if (case.batch, case.context) == (16, 24):
        raise LimitError("no memory")
    return 2.0


class _Reference:
    weight_bytes, kv_bytes = 2000, 20

    def __init__(self, *_: Any) -> None: ...

    def step_ms(self, batch: int, context: int, *, compiled: bool) -> float:
        return (
            9.0
            if compiled
            else 80.0
            if (batch, context) != (16, 24)
            else _decode(_Session(), SimpleNamespace(batch=batch, context=context))
        )

    def prefill_ms(self, *_: int) -> float:
        return 6.0

    def close(self) -> None: ...


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Session, "opened", 0)
    for name, stub in {
        "require_gpu": lambda *_, **__: None,
        "CudaSession": _Session,
        "_decode_ms": _decode,
        "_prefill_ms": lambda *_: 5.0,
        "copy_bandwidth": lambda _: 1e12,
    }.items():
        monkeypatch.setattr(benchmarking, name, stub)
    monkeypatch.setattr(gpu_reference, "HuggingFaceDecoding", _Reference)
    for name, value in {"get_device_name": "A GPU", "max_memory_allocated": 7}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)


@pytest.mark.usefixtures("no_gpu")
def test_every_case_has_a_line_or_a_reason() -> None:
    kept: list[GpuBenchmarkResult] = []
    result = gpu_benchmark("small", SMALL, QUICK, Listeners(keep=kept.append))
    modes = ["float16"] * 4 + ["int4"] * 4 + ["hf eager"] * 4 + ["hf compiled"]
    assert [speed.mode for speed in result.speeds] == modes
    assert [(s.task, s.batch, s.context) for s in result.speeds[:4]] == [
        ("decode", 1, 8), ("decode", 16, 8), ("decode", 1, 24), ("prefill", 2, 16)
    ]  # fmt: skip
    assert result.skipped == tuple(
        f"{mode} batch 16 context 24: does not fit the device's memory" for mode in ("float16", "int4", "hf eager")
    )
    step, prefill = result.speeds[1], result.speeds[3]
    assert (step.step_ms, step.tokens_per_s, step.moved_bytes) == (
        2.0,
        8000,
        1000 + 16 * 13 * 10,
    )  # 8 + 3 + 4 / 2 tokens
    assert step.bandwidth_share == pytest.approx(3080 / 2e-3 / 1e12)
    assert (prefill.tokens_per_s, prefill.moved_bytes) == (6400, 1000 + 2 * 16 * 10)
    assert prefill.tflops == pytest.approx(prefill_flops(SMALL, 2, 16) / 5e9)
    assert kept[-1] == result
    assert [len(each.speeds) + len(each.skipped) for each in kept] == list(range(1, 17))
    assert len(result.frame) == 13


@pytest.mark.usefixtures("no_gpu")
def test_every_case_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 3.0)  # read once when the run begins, and once a case
    monkeypatch.setattr(benchmarking.time, "perf_counter", lambda: next(clock))
    result = gpu_benchmark("small", SMALL, QUICK)
    assert [speed.case_seconds for speed in result.speeds] == [3.0] * 13
    assert result.seconds == 3.0 * (13 + len(result.skipped))


@pytest.mark.usefixtures("no_gpu")
def test_garbage_of_cases_is_collected_and_what_was_there_before_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before, frozen, lost = gc.get_freeze_count(), [], []

    def decode(*_: Any) -> float:
        frozen.append(gc.get_freeze_count())
        held: list[Any] = []
        held.append(held)  # what holds itself goes with the next collection only
        lost.append(weakref.ref(marked := _Marked(held)))
        held.append(marked)
        return 2.0

    monkeypatch.setattr(benchmarking, "_decode_ms", decode)
    gpu_benchmark("small", SMALL, replace(QUICK, hugging_face=False))
    assert min(frozen) > before + 1000
    assert gc.get_freeze_count() == before
    assert [each() for each in lost[:-1]] == [None] * 7


class _Marked:
    """Can be referred to weakly."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("small", "compiled"), [(0, [1, 4]), (10**12, [1])])
def test_a_small_model_is_compiled_once(monkeypatch: pytest.MonkeyPatch, small: int, compiled: list[int]) -> None:
    monkeypatch.setattr(benchmarking, "SMALL_MODEL", small)
    result = gpu_benchmark("small", SMALL, replace(QUICK, modes=("float16",), batches=(1, 4, 16), prefills=()))
    assert [(s.batch, s.context) for s in result.speeds if s.mode == "hf compiled"] == [
        (batch, 8) for batch in compiled
    ]


@pytest.mark.usefixtures("no_gpu")
def test_hugging_face_is_counted_at_the_context_that_it_is_timed_at() -> None:
    result = gpu_benchmark("small", SMALL, QUICK)
    found = {
        speed.mode: speed
        for speed in result.speeds
        if speed.task == "decode" and (speed.batch, speed.context) == (1, 8)
    }
    for mode, (short, long) in {"hf eager": EAGER_LENGTHS, "hf compiled": COMPILED_LENGTHS}.items():
        # The step that makes token n finds the prompt and n - 2 tokens in the cache, and leaves one more.
        mean = statistics.mean(8 + n - 1.5 for n in range(short + 1, long + 1))
        assert (found[mode].steps, found[mode].moved_bytes) == (long - short, 2000 + int(20 * mean))
        assert found[mode].flops == step_flops(SMALL, 1, mean)
    assert found["int4"].steps == 4
    assert {speed.steps for speed in result.speeds if speed.task == "prefill"} == {0}


@pytest.mark.usefixtures("no_gpu")
def test_the_most_memory_is_that_of_the_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"now": 100, "most": 0}

    def take(count: int) -> None:
        memory["now"] = 100 + count
        memory["most"] = max(memory["most"], memory["now"])

    def decode(_: _Session, case: Any) -> float:
        take(case.batch * case.context)
        return 2.0

    monkeypatch.setattr(_Session, "resize", lambda *_: take(0))
    monkeypatch.setattr(benchmarking, "_decode_ms", decode)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: memory.update(most=memory["now"]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: memory["most"])
    falling = replace(QUICK, modes=("float16",), batches=(16, 1), contexts=(24, 8), prefills=(), hugging_face=False)
    result = gpu_benchmark("small", SMALL, falling)
    assert {(s.batch, s.context): s.peak_bytes for s in result.speeds} == {
        (batch, context): 100 + batch * context for batch in (1, 16) for context in (8, 24)
    }


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no memory"), LimitError("no memory")])
def test_a_mode_whose_weights_do_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def draw(config: Any, recipe: Any) -> Any:
        if recipe == GPU_MODES["float16"]:
            raise error
        return dummy_weights(config, recipe)

    kept: list[GpuBenchmarkResult] = []
    monkeypatch.setattr(benchmarking, "dummy_weights", draw)
    result = gpu_benchmark("small", SMALL, QUICK, Listeners(keep=kept.append))
    assert {speed.mode for speed in result.speeds} == {"int4"}
    lost = [line for line in result.skipped if line.endswith(": the weights do not fit the device's memory")]
    assert len(lost) == 5 + 6  # of float16, and of Hugging Face's two ways
    assert lost[0].startswith("float16 batch 1 context 8: ")
    assert kept[-1] == result
    again = gpu_benchmark("small", SMALL, QUICK, known=result)
    assert again.skipped == result.skipped


@pytest.mark.usefixtures("no_gpu")
def test_the_driver_is_among_the_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "driver_version", lambda: "580.1")
    known = gpu_benchmark("small", SMALL, replace(QUICK, hugging_face=False))
    assert known.conditions.versions["driver"] == "580.1"
    monkeypatch.setattr(benchmarking, "driver_version", lambda: "590.2")
    with pytest.raises(WorkbenchError, match="hold for another versions"):
        gpu_benchmark("small", SMALL, QUICK, known=known)


@pytest.mark.usefixtures("no_gpu")
def test_a_stopped_run_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "SMALL_MODEL", 0)  # Hugging Face is compiled for every batch
    kept: list[GpuBenchmarkResult] = []
    whole = gpu_benchmark("small", SMALL, QUICK, Listeners(keep=kept.append))
    half = GpuBenchmarkResult.from_dict(json.loads(json.dumps(kept[4].to_dict())))
    assert half.skipped  # what did not fit is not tried again
    _Session.opened, kept[:] = 0, []
    again = gpu_benchmark("small", SMALL, QUICK, Listeners(keep=kept.append), known=half)
    assert [replace(s, case_seconds=0) for s in again.speeds] == [replace(s, case_seconds=0) for s in whole.speeds]
    assert again.skipped == whole.skipped
    assert len(kept) == 16 - 5
    assert _Session.opened == 2  # int4's, and one by the stub of Hugging Face
    assert again.date == half.date
    more = gpu_benchmark("small", SMALL, replace(QUICK, batches=(1, 2, 16)), known=again)
    assert len(more.speeds) == len(whole.speeds) + 2 + 2 + 2 + 1


@pytest.mark.usefixtures("no_gpu")
def test_times_of_other_conditions_are_not_put_together() -> None:
    known = gpu_benchmark("small", SMALL, replace(QUICK, hugging_face=False))
    with pytest.raises(WorkbenchError, match="the times in the file hold for another steps; begin anew, without"):
        gpu_benchmark("small", SMALL, replace(QUICK, steps=5), known=known)
    changed = replace(known, conditions=replace(known.conditions, code="other", gpu="Another"))
    with pytest.raises(WorkbenchError, match="hold for another gpu and code"):
        gpu_benchmark("small", SMALL, QUICK, known=changed)


@pytest.mark.gpu
@needs_gpu
def test_every_mode_is_timed() -> None:
    options = GpuBenchmarkOptions(batches=(1, 3), contexts=(8,), prefills=((2, 16),), steps=4, hugging_face=False)
    result = gpu_benchmark("small", SMALL, options)
    decoding = [s for s in result.speeds if s.task == "decode"]
    assert [(s.mode, s.batch) for s in decoding] == [(m, b) for m in options.modes for b in (1, 3)]
    assert [s.mode for s in result.speeds if s.task == "prefill"] == list(options.modes)
    assert all(s.step_ms > 0 and s.moved_bytes > 0 and s.peak_bytes > 0 for s in result.speeds)
    by_mode = {s.mode: s.moved_bytes for s in decoding if s.batch == 1}
    assert by_mode["int4"] < by_mode["int8"] < by_mode["float16"]
    assert by_mode["float16+kv8"] < by_mode["float16"]
    assert json.dumps(result.to_dict())


@pytest.mark.gpu
@needs_gpu
def test_hugging_face_is_timed_eager_and_compiled() -> None:
    options = GpuBenchmarkOptions(modes=("float16",), batches=(1,), contexts=(8,), prefills=((2, 16),), steps=4)
    result = gpu_benchmark("small", SMALL, options)
    assert [(s.mode, s.task) for s in result.speeds if s.mode.startswith("hf")] == [
        ("hf eager", "decode"), ("hf eager", "prefill"), ("hf compiled", "decode")
    ]  # fmt: skip
