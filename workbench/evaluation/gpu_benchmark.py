"""How fast one GPU decodes and reads prompts with random weights, mode by mode, beside Hugging Face. Prints nothing.

A decoding step is one token for the whole batch, the choice of the next tokens included, timed with device events over
many steps; the context grows by one token a step. Bytes moved are what a step must read: all packed weights, and the
keys and values at the mean context of the timed steps. They are compared with the bandwidth of a large copy on the same
device. A prefill is the call of the session, from lists of token ids to the last logits.
"""

from __future__ import annotations

import datetime
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workbench.backends.kernels import require_gpu
from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.errors import LimitError, WorkbenchError
from workbench.evaluation.gpu_clock import copy_bandwidth, elapsed_ms
from workbench.evaluation.gpu_driver import driver_version
from workbench.evaluation.gpu_options import COMPILED_MOST, GPU_MODES, SMALL_MODEL, GpuBenchmarkOptions
from workbench.evaluation.gpu_results import (
    DECODE,
    PREFILL,
    Conditions,
    GpuBenchmarkResult,
    GpuSpeed,
    code_checksum,
    in_order,
    label,
)
from workbench.evaluation.gpu_work import prefill_flops, step_flops
from workbench.evaluation.memory import parameters
from workbench.model.config import ModelConfig
from workbench.model.weights import ModelWeights
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.recipe import BuildLimits, Recipe
from workbench.runtime.cuda_session import CudaOptions, CudaSession

if TYPE_CHECKING:
    from workbench.evaluation.gpu_reference import HuggingFaceDecoding

HF_EAGER, HF_COMPILED = "hf eager", "hf compiled"
WARM_UP = 3
PREFILL_ROUNDS = 3
ROOM = 16  # cache rows beyond what is timed
LEAST = BuildLimits(max_batch_size=1, max_input_len=1, max_output_len=1)


@dataclass(frozen=True)
class _Case:
    """One line to be.

    Attributes:
        mode, task, batch, context, steps: as in :class:`GpuSpeed`.
        before: steps after the context that are not timed.
    """

    mode: str
    task: str
    batch: int
    context: int
    steps: int = 0
    before: int = 0

    @property
    def label(self) -> str:
        return label(self.mode, self.task, self.batch, self.context)

    @property
    def mean_context(self) -> float:
        """Of the timed steps."""
        return self.context + self.before + self.steps / 2


Keep = Callable[[GpuBenchmarkResult], None]


@dataclass(frozen=True)
class Listeners:
    """Who is told what.

    Attributes:
        report: called as cases are done.
        keep: called with the result so far after every case.
    """

    report: Reporter = silent
    keep: Keep = lambda _: None


def gpu_benchmark(
    name: str,
    config: ModelConfig,
    options: GpuBenchmarkOptions | None = None,
    listeners: Listeners | None = None,
    *,
    known: GpuBenchmarkResult | None = None,
) -> GpuBenchmarkResult:
    """Time a model of these sizes with random weights.

    Args:
        name: of the model, for the result.
        config: its sizes.
        options: what to measure.
        listeners: told of progress.
        known: what a run that was stopped had found; its cases are not timed again if the conditions are the same.

    Raises:
        BackendError: torch finds no CUDA device, or one that is too old, or Triton is not installed.
        WorkbenchError: ``known`` was found under other conditions.
    """
    options = options or GpuBenchmarkOptions()
    require_gpu("a benchmark with random weights")
    config = timed_config(config, options)
    result = begun(conditions(name, config, options), options, known)
    run = _Run(config, options, result, listeners or Listeners())
    if options.hugging_face:
        import workbench.evaluation.gpu_reference  # noqa: F401  # what it imports is left alone, too
    with _modules_left_alone():
        for mode in options.modes:
            run.ours(mode)
        if options.hugging_face:
            run.hugging_face()
    return run.result


@contextmanager
def _modules_left_alone() -> Iterator[None]:
    """Collections of garbage pass over what is there now: the half million objects of torch and transformers.

    There is a collection before every case, and each would take a quarter of a second for them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def conditions(name: str, config: ModelConfig, options: GpuBenchmarkOptions) -> Conditions:
    """What times depend on here."""
    import transformers
    import triton

    versions = {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "driver": driver_version(),
    }
    gpu = torch.cuda.get_device_name(options.device)
    return Conditions(name, asdict(config), options.steps, gpu, versions, code_checksum())


def begun(here: Conditions, options: GpuBenchmarkOptions, known: GpuBenchmarkResult | None) -> GpuBenchmarkResult:
    """A result without lines, or with those that are known.

    Raises:
        WorkbenchError: they were found under other conditions.
    """
    if known is None:
        today = datetime.date.today().isoformat()
        return GpuBenchmarkResult(here, asdict(options), copy_bandwidth(torch.device(options.device)), (), (), today)
    others = here.differences(known.conditions)
    if others:
        raise WorkbenchError(
            f"the times in the file hold for another {' and '.join(others)}",
            fix="begin anew, without --resume",
        )
    return replace(known, options=asdict(options))


def timed_config(config: ModelConfig, options: GpuBenchmarkOptions) -> ModelConfig:
    """The model with room for the longest case and plain RoPE, on both sides.

    Time does not depend on the positions that a model was trained for, nor does it on our side on how they are scaled.
    Hugging Face would look at the positions on the host in every step of a model that scales them dynamically.
    """
    longest = max(options.contexts) + options.steps + 2 * ROOM
    longest = max(longest, *(length + ROOM for _, length in options.prefills), config.max_position_embeddings)
    return replace(config, max_position_embeddings=longest, rope_scaling=None)


def dummy_weights(config: ModelConfig, recipe: Recipe) -> ModelWeights:
    """Weights of a recipe that are drawn as they are read, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        return write_dummy_checkpoint(Path(folder) / "dummy", config, recipe).weights


class _Run:
    """One benchmark under way.

    Attributes:
        result: what was found so far.
    """

    def __init__(
        self, config: ModelConfig, options: GpuBenchmarkOptions, result: GpuBenchmarkResult, listeners: Listeners
    ) -> None:
        self.config, self.options, self.result = config, options, result
        self.report, self.keep = listeners.report, listeners.keep
        self.device = torch.device(options.device)
        self._clock = time.perf_counter()

    def ours(self, mode: str) -> None:
        """Our side of all cases in one mode, over the same weights."""
        options = self.options
        shapes = [(batch, context) for context in options.contexts for batch in options.batches]
        cases = self._left(_Case(mode, DECODE, 0, 0, options.steps, WARM_UP), shapes)
        cases += self._left(_Case(mode, PREFILL, 0, 0), options.prefills)
        if not cases:
            return
        self.report(ProgressEvent(f"benchmark: {mode}", 0, len(cases), "cases"))
        with self._fitting(cases):
            opened = CudaOptions(torch.float16, LEAST, options.device)
            session = CudaSession(self.config, dummy_weights(self.config, GPU_MODES[mode]), opened)
            try:
                self._time_ours(mode, session, cases)
            finally:
                session.close()

    def _time_ours(self, mode: str, session: CudaSession, cases: list[_Case]) -> None:
        for case in self._told(mode, cases):
            time_ms = _prefill_ms if case.task == PREFILL else _decode_ms
            kv_bytes = int(case.batch * case.mean_context * session.kv_bytes_per_token)
            session.resize(LEAST)  # the case before leaves its cache, which is none of this one's memory
            with self._one(case) as record:
                record(time_ms(session, case), session.ops.weight_bytes + kv_bytes)

    def hugging_face(self) -> None:
        """Hugging Face in float16: eager, then with a static cache and torch.compile."""
        from workbench.evaluation.gpu_reference import COMPILED_LENGTHS, EAGER_LENGTHS, HuggingFaceDecoding

        options = self.options
        shapes = [(batch, context) for context in options.contexts for batch in options.batches]
        few = [(batch, options.contexts[0]) for batch in options.batches if batch <= COMPILED_MOST]
        if parameters(self.config) < SMALL_MODEL:
            few = few[:1]
        cases = self._left(_generated(HF_EAGER, EAGER_LENGTHS), shapes)
        cases += self._left(_Case(HF_EAGER, PREFILL, 0, 0), options.prefills)
        cases += self._left(_generated(HF_COMPILED, COMPILED_LENGTHS), few)
        if not cases:
            return
        self.report(ProgressEvent("benchmark: Hugging Face", 0, len(cases), "cases"))
        with self._fitting(cases):
            weights = dummy_weights(self.config, GPU_MODES["float16"])
            reference = HuggingFaceDecoding(self.config, weights, self.device)
            try:
                self._time_reference(reference, cases)
            finally:
                reference.close()

    def _time_reference(self, reference: HuggingFaceDecoding, cases: list[_Case]) -> None:
        for case in self._told("Hugging Face", cases):
            moved = reference.weight_bytes + int(case.batch * case.mean_context * reference.kv_bytes)
            with self._one(case) as record:
                if case.task == PREFILL:
                    record(reference.prefill_ms(case.batch, case.context), moved)
                else:
                    compiled = case.mode == HF_COMPILED
                    record(reference.step_ms(case.batch, case.context, compiled=compiled), moved)

    def _left(self, like: _Case, shapes: Sequence[tuple[int, int]]) -> list[_Case]:
        """Cases of these (batch, context) that nobody knows yet."""
        known = self.result.cases()
        cases = [replace(like, batch=batch, context=context) for batch, context in shapes]
        return [case for case in cases if case.label not in known]

    @contextmanager
    def _fitting(self, cases: list[_Case]) -> Iterator[None]:
        """Notes all cases as skipped where their weights do not fit the device's memory; gives memory back."""
        try:
            yield
        except (torch.cuda.OutOfMemoryError, LimitError):
            for case in cases:
                if case.label not in self.result.cases():
                    self._add(skipped=f"{case.label}: the weights do not fit the device's memory")
        finally:
            torch.cuda.empty_cache()

    def _told(self, what: str, cases: list[_Case]) -> Iterator[_Case]:
        """The cases, and to the reporter how many are done."""
        for done, case in enumerate(cases, start=1):
            yield case
            self.report(ProgressEvent(f"benchmark: {what}", done, len(cases), "cases"))

    @contextmanager
    def _one(self, case: _Case) -> Iterator[Callable[[float, int], None]]:
        """Takes the time and the bytes of a case; notes one that does not fit the device's memory, and goes on."""
        gc.collect()  # caches of Hugging Face's that hold each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield lambda time_ms, moved: self._add(self._speed(case, time_ms, moved))
        except (torch.cuda.OutOfMemoryError, LimitError):
            skipped = f"{case.label}: does not fit the device's memory"
            self._add(skipped=skipped)

    def _add(self, speed: GpuSpeed | None = None, skipped: str = "") -> None:
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        new = [replace(speed, case_seconds=took)] if speed else []
        speeds = in_order((*self.result.speeds, *new), (*GPU_MODES, HF_EAGER, HF_COMPILED))
        told = (*self.result.skipped, *([skipped] if skipped else []))
        self.result = replace(self.result, speeds=speeds, skipped=told, seconds=self.result.seconds + took)
        self.keep(self.result)

    def _speed(self, case: _Case, time_ms: float, moved_bytes: int) -> GpuSpeed:
        prefill = case.task == PREFILL
        flops = prefill_flops if prefill else step_flops
        return GpuSpeed(
            mode=case.mode,
            batch=case.batch,
            context=case.context,
            step_ms=time_ms,
            tokens_per_s=case.batch * (case.context if prefill else 1) / time_ms * 1e3,
            moved_bytes=moved_bytes,
            bandwidth_share=moved_bytes / (time_ms / 1e3) / self.result.bandwidth,
            flops=flops(self.config, case.batch, case.mean_context),
            peak_bytes=torch.cuda.max_memory_allocated(self.device),
            task=case.task,
            steps=case.steps,
        )


def _generated(mode: str, lengths: tuple[int, int]) -> _Case:
    """A case of Hugging Face, which times the steps between two lengths; the first token is the prompt's."""
    short, long = lengths
    return _Case(mode, DECODE, 0, 0, steps=long - short, before=short - 1)


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


def _prefill_ms(session: CudaSession, case: _Case) -> float:
    """Median time of reading random prompts; kernels are compiled before."""
    session.resize(BuildLimits(max_batch_size=case.batch, max_input_len=case.context, max_output_len=ROOM))
    prompts = torch.randint(0, session.config.vocab_size, (case.batch, case.context)).tolist()
    times = [elapsed_ms(lambda: session.prefill(prompts)) for _ in range(1 + PREFILL_ROUNDS)]
    return statistics.median(times[1:])
