"""How fast one GPU decodes with random weights, mode by mode, beside Hugging Face. Returns figures, prints nothing.

Every latency is one decoding step of the whole batch, the choice of the next tokens included, timed with device events
over many steps; the context grows by one token a step. Bytes moved are what a step must read: all packed weights, and
the keys and values at the mean context. They are compared with the bandwidth of a large copy on the same device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from workbench.backends.kernels import require_gpu
from workbench.backends.kernels.nvrtc import timer
from workbench.errors import WorkbenchError, nearest
from workbench.evaluation.dummy_weights import DummyMode, dummy_weights
from workbench.model.config import ModelConfig
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.recipe import BuildLimits
from workbench.runtime.cuda_session import CudaOptions, CudaSession

if TYPE_CHECKING:
    import pandas as pd

GPU_MODES: dict[str, DummyMode] = {
    "float16": DummyMode("float16"),
    "int8": DummyMode("int8"),
    "int4": DummyMode("int4"),
    "w8a8": DummyMode("w8a8"),
    "float16+kv8": DummyMode("float16", int8_cache=True),
    "w8a8+kv8": DummyMode("w8a8", int8_cache=True),
}
COPY_BYTES = 1 << 30
COMPILED_MOST = 8
WARM_UP = 3
ROOM = 16  # cache rows beyond what is timed


@dataclass(frozen=True)
class GpuBenchmarkOptions:
    """What to measure.

    Attributes:
        modes: keys of :data:`GPU_MODES`; "int4" has groups of 128, "w8a8" scales per channel and token, "kv8" is an
            INT8 cache. The head is float16 in all of them.
        batches: rows that decode together.
        contexts: tokens that each row has before the first step.
        steps: decoding steps that are timed.
        hugging_face: time Hugging Face in float16 too, at the first context: eager, and up to :data:`COMPILED_MOST`
            rows with a static cache and torch.compile, which takes a minute a case.
        device: a CUDA device.
    """

    modes: tuple[str, ...] = tuple(GPU_MODES)
    batches: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (128, 2048)
    steps: int = 128
    hugging_face: bool = True
    device: str = "cuda"

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in GPU_MODES:
                hint = nearest(mode, GPU_MODES)
                raise WorkbenchError(f"benchmark mode {mode!r}", allowed=", ".join(GPU_MODES), fix=hint or None)
        for name, values in (("batches", self.batches), ("contexts", self.contexts), ("steps", (self.steps,))):
            if not values or min(values) < 1:
                raise WorkbenchError(f"benchmark {name} {values}", allowed="whole numbers from 1")


@dataclass(frozen=True)
class GpuSpeed:
    """One line of the table.

    Attributes:
        mode: key of :data:`GPU_MODES`, or "hf eager", "hf compiled".
        batch, context: rows, and tokens of each before the first timed step.
        step_ms: one token for every row; mean over the steps.
        tokens_per_s: of all rows together.
        moved_bytes: weights, keys and values that a step reads.
        bandwidth_share: ``moved_bytes / step_ms`` over the measured bandwidth.
        flops: of the products and of attention in one step.
        peak_bytes: most device memory in use.
    """

    mode: str
    batch: int
    context: int
    step_ms: float
    tokens_per_s: float
    moved_bytes: int
    bandwidth_share: float
    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class GpuBenchmarkResult:
    """All lines, and what they hold for.

    Attributes:
        bandwidth: bytes a second of a large copy, read and written bytes together.
        skipped: cases that were not run, and why.
    """

    model: str
    options: GpuBenchmarkOptions
    gpu: str
    versions: dict[str, str]
    bandwidth: float
    speeds: tuple[GpuSpeed, ...]
    skipped: tuple[str, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per line, columns named as the fields of :class:`GpuSpeed`."""
        import pandas as pd

        return pd.DataFrame([asdict(speed) for speed in self.speeds])

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Case:
    batch: int
    context: int
    steps: int

    @property
    def mean_context(self) -> float:
        return self.context + self.steps / 2


def gpu_benchmark(
    name: str, config: ModelConfig, options: GpuBenchmarkOptions | None = None, report: Reporter = silent
) -> GpuBenchmarkResult:
    """Time decoding of a model of these sizes with random weights.

    Args:
        name: of the model, for the result.
        config: its sizes.
        options: what to measure.
        report: called as cases are done.

    Raises:
        BackendError: torch finds no CUDA device, or Triton is not installed.
    """
    options = options or GpuBenchmarkOptions()
    require_gpu("a benchmark with random weights")
    cases = [_Case(batch, context, options.steps) for context in options.contexts for batch in options.batches]
    run = _Run(timed_config(config, options), options, copy_bandwidth(torch.device(options.device)), report)
    speeds = [speed for mode in options.modes for speed in run.ours(mode, cases)]
    if options.hugging_face:
        speeds += list(run.hugging_face(cases))
    gpu = torch.cuda.get_device_name(options.device)
    return GpuBenchmarkResult(name, options, gpu, _versions(), run.bandwidth, tuple(speeds), tuple(run.skipped))


def timed_config(config: ModelConfig, options: GpuBenchmarkOptions) -> ModelConfig:
    """The model with room for the longest case and plain RoPE, on both sides.

    Time does not depend on the positions that a model was trained for, nor does it on our side on how they are scaled.
    Hugging Face would look at the positions on the host in every step of a model that scales them dynamically.
    """
    longest = max(options.contexts) + options.steps + 2 * ROOM
    return replace(config, max_position_embeddings=max(longest, config.max_position_embeddings), rope_scaling=None)


class _Run:
    """One benchmark under way."""

    def __init__(self, config: ModelConfig, options: GpuBenchmarkOptions, bandwidth: float, report: Reporter) -> None:
        self.config, self.options, self.bandwidth, self.report = config, options, bandwidth, report
        self.device = torch.device(options.device)
        self.skipped: list[str] = []

    def ours(self, mode: str, cases: Sequence[_Case]) -> Iterator[GpuSpeed]:
        """Our decoding of all cases in one mode, over the same weights."""
        largest = max(case.batch for case in cases)
        limits = BuildLimits(max_batch_size=largest, max_input_len=1, max_output_len=1)
        options = CudaOptions(torch.float16, limits, self.options.device)
        session = CudaSession(self.config, dummy_weights(self.config, GPU_MODES[mode], self.device), options)
        try:
            for done, case in enumerate(cases):
                self.report(ProgressEvent(f"benchmark: {mode}", done, len(cases), "cases"))
                kv_bytes = int(case.batch * case.mean_context * session.kv_bytes_per_token)
                with self._memory(f"{mode} batch {case.batch} context {case.context}") as fits:
                    step_ms = _decode_ms(session, case)
                if fits.ok:
                    yield self._speed(mode, case, step_ms, session.ops.weight_bytes + kv_bytes)
            self.report(ProgressEvent(f"benchmark: {mode}", len(cases), len(cases), "cases"))
        finally:
            session.close()
            torch.cuda.empty_cache()

    def hugging_face(self, cases: Sequence[_Case]) -> Iterator[GpuSpeed]:
        """Hugging Face in float16: eager, then with a static cache and torch.compile."""
        from workbench.evaluation.gpu_reference import HuggingFaceDecoding

        reference = HuggingFaceDecoding(self.config, self.device)
        try:
            for name, compiled in (("hf eager", False), ("hf compiled", True)):
                chosen = [case for case in cases if case.context == self.options.contexts[0]]
                chosen = [case for case in chosen if case.batch <= COMPILED_MOST or not compiled]
                for done, case in enumerate(chosen):
                    self.report(ProgressEvent(f"benchmark: {name}", done, len(chosen), "cases"))
                    with self._memory(f"{name} batch {case.batch} context {case.context}") as fits:
                        step_ms = reference.step_ms(case.batch, case.context, compiled=compiled)
                    if fits.ok:
                        moved = reference.weight_bytes + int(case.batch * case.mean_context * reference.kv_bytes)
                        yield self._speed(name, case, step_ms, moved)
                self.report(ProgressEvent(f"benchmark: {name}", len(chosen), len(chosen), "cases"))
        finally:
            reference.close()

    @contextmanager
    def _memory(self, what: str) -> Iterator[_Fits]:
        """Note a case that does not fit the device's memory, and go on."""
        fits = _Fits()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield fits
        except torch.cuda.OutOfMemoryError:
            fits.ok = False
            self.skipped.append(f"{what}: does not fit the device's memory")

    def _speed(self, mode: str, case: _Case, step_ms: float, moved_bytes: int) -> GpuSpeed:
        return GpuSpeed(
            mode=mode,
            batch=case.batch,
            context=case.context,
            step_ms=step_ms,
            tokens_per_s=case.batch / step_ms * 1e3,
            moved_bytes=moved_bytes,
            bandwidth_share=moved_bytes / (step_ms / 1e3) / self.bandwidth,
            flops=step_flops(self.config, case.batch, case.mean_context),
            peak_bytes=torch.cuda.max_memory_allocated(self.device),
        )


@dataclass
class _Fits:
    ok: bool = True


def _decode_ms(session: CudaSession, case: _Case) -> float:
    """Mean time of a step; the graph is captured and warmed up before."""
    steps = case.steps + WARM_UP + ROOM
    session.resize(BuildLimits(max_batch_size=case.batch, max_input_len=case.context, max_output_len=steps))
    session.fill_randomly(case.batch, case.context)
    for _ in range(WARM_UP):
        session.decode_greedy()

    def decode() -> None:
        for _ in range(case.steps):
            session.decode_greedy()

    return elapsed_ms(decode) / case.steps


def elapsed_ms(work: Callable[[], None]) -> float:
    """Time on the device between the first and the last kernel that ``work`` queues."""
    begin, end = timer(), timer()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy on the device reads and writes; median of 10."""
    source = torch.empty(COPY_BYTES // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)

    def copy() -> None:
        target.copy_(source)

    times = [elapsed_ms(copy) for _ in range(10)]
    return 2 * COPY_BYTES / (statistics.median(times) / 1e3)


def step_flops(config: ModelConfig, batch: int, context: float) -> float:
    """Floating-point operations of one step: two for each weight and row, four for each query head's key element."""
    per_layer = config.hidden_size * (config.qkv_features + config.num_heads * config.head_dim)
    per_layer += 3 * config.hidden_size * config.intermediate_size
    weights = config.num_layers * per_layer + config.vocab_size * config.hidden_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * context
    return batch * (2 * weights + attention)


def _versions() -> dict[str, str]:
    import transformers
    import triton

    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "transformers": transformers.__version__,
    }
