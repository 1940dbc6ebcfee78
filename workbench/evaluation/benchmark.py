"""How fast the CPU op set is beside Hugging Face, in runs that take turns. Returns figures, prints nothing.

Both run the same weights at batch 1 on the same threads. Since the runs alternate, whatever else the machine does
falls on both; the ratio of each round is taken, and the median of the rounds is reported.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from workbench.checkpoint.available_memory import available_bytes, fits, require_memory
from workbench.checkpoint.dummy_model import DummyModel
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.rank_parts import rank_parts, total_bytes
from workbench.checkpoint.weight_source import WeightSource
from workbench.errors import WorkbenchError, nearest
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig
from workbench.model.presets import PRESETS
from workbench.model.weights import DenseWeight, LayerWeights, LinearWeight, ModelWeights
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.quantize import quantize_linear
from workbench.recipe import BuildLimits, Int8WeightOnly, Recipe, WeightQuantization
from workbench.runtime.limits import check_positions
from workbench.runtime.needs import CPU_BYTES
from workbench.runtime.session import SessionOptions, TorchSession

if TYPE_CHECKING:
    import pandas as pd

Round = tuple[float, float]  # milliseconds of Hugging Face, then ours


@dataclass(frozen=True)
class Mode:
    """One way to run the model: the dtype of both sides, and how our linear layers (not the head) are quantized."""

    dtype: torch.dtype
    weights: WeightQuantization | None = None


MODES: dict[str, Mode] = {
    "float32": Mode(torch.float32),
    "bfloat16": Mode(torch.bfloat16),
    "int8": Mode(torch.bfloat16, Int8WeightOnly()),
    "float16": Mode(torch.float16),
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        modes: keys of :data:`MODES`; "int8" is weight-only INT8 with a bfloat16 head, against Hugging Face in bfloat16.
        threads: of torch, for both sides.
        rounds: how often the two take turns.
        prompt_len, decode_tokens: decode is timed for this many tokens after a prompt of this length.
        prefill_len: prefill is timed for a prompt of this length.
    """

    modes: tuple[str, ...] = ("float32", "bfloat16", "int8")
    threads: int = 2
    rounds: int = 7
    prompt_len: int = 16
    decode_tokens: int = 16
    prefill_len: int = 512

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                hint = nearest(mode, MODES)
                raise WorkbenchError(f"benchmark mode {mode!r}", allowed=", ".join(MODES), fix=hint or None)
        for name in ("threads", "rounds", "prompt_len", "decode_tokens", "prefill_len"):
            if getattr(self, name) < 1:
                raise WorkbenchError(f"benchmark {name} {getattr(self, name)}", allowed="whole numbers from 1")


@dataclass(frozen=True)
class Speed:
    """One line of the table; times are medians over the rounds.

    Attributes:
        mode: key of :data:`MODES`.
        task: "decode" (times per token) or "prefill" (times per prompt).
        tokens: length of the prompt for prefill, tokens generated for decode.
        hf_dtype: the dtype that Hugging Face ran in.
        hf_ms, workbench_ms: the two times.
        ratio: how many times as fast we are; median over the rounds of ``hf_ms / workbench_ms``.
        ratio_low, ratio_high: the rounds' extremes.
    """

    mode: str
    task: str
    tokens: int
    hf_dtype: str
    hf_ms: float
    workbench_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class BenchmarkResult:
    """All lines, and what they hold for."""

    model: str
    options: BenchmarkOptions
    cpu: str
    torch_version: str
    speeds: tuple[Speed, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per line, columns named as the fields of :class:`Speed`."""
        import pandas as pd

        return pd.DataFrame([asdict(speed) for speed in self.speeds])

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def benchmark(
    model_dir: str | Path | DummyModel, options: BenchmarkOptions | None = None, report: Reporter = silent
) -> BenchmarkResult:
    """Time decode and prefill of an HF checkpoint on the CPU op set, against Hugging Face's eager model.

    Args:
        model_dir: the checkpoint's folder, or dummy weights: times do not depend on their values.
        options: what to measure.
        report: told the rounds.

    Raises:
        CheckpointError: the folder is not an InternLM checkpoint that can be read.
        LimitError: a prompt longer than the model's positions.
        ResourceError: this machine has too little memory for both.
    """
    options = options or BenchmarkOptions()
    checkpoint = model_dir if isinstance(model_dir, DummyModel) else HFCheckpoint.open(model_dir)
    check_positions(options.prefill_len, checkpoint.config, what="the prefill prompt")
    check_positions(options.prompt_len + options.decode_tokens, checkpoint.config, what="the decoded sequence")
    _require_room(checkpoint, options.modes)
    speeds: list[Speed] = []
    with _threads(options.threads):
        for mode in options.modes:
            pair = _Pair(_in_dtype(checkpoint, MODES[mode].dtype), mode, options)
            speeds += [pair.decode(report), pair.prefill(report)]
    name = "dummy weights" if isinstance(model_dir, DummyModel) else str(model_dir)
    return BenchmarkResult(name, options, _cpu_name(), torch.__version__, tuple(speeds))


def _require_room(source: WeightSource, modes: tuple[str, ...]) -> None:
    """Refuse modes that do not fit into memory, with what does.

    Raises:
        ResourceError: names the first that does not fit.
    """
    available = available_bytes()
    if available is None:
        return
    for mode in modes:
        needed = _needed_bytes(source, mode)
        if not fits(needed, available):
            way_out = _way_out(source, modes, available)
            require_memory(needed, f"mode {mode}", fix=way_out, available=available)


def _way_out(source: WeightSource, modes: tuple[str, ...], available: int) -> str:
    """What of less memory fits: other modes of the same model, and of dummy weights fewer layers in the same modes."""
    ways = []
    fitting = [mode for mode in MODES if fits(_needed_bytes(source, mode), available)]
    if fitting:
        ways.append(f"--modes {' '.join(fitting)}")
    if isinstance(source, DummyModel):
        layers = _most_layers(source, modes, available)
        if layers:
            ways.append(f"--n_layer {layers}")
    return f"what fits: {', or '.join(ways)}" if ways else "measure on a machine with more memory"


@dataclass(frozen=True)
class RoomForDummies:
    """Dummy weights that this machine has the memory to time.

    Attributes:
        preset: whose sizes; None for those that were asked for.
        modes: keys of :data:`MODES`.
        layers: how many; None for as many as there are.
    """

    preset: str | None
    modes: tuple[str, ...]
    layers: int | None = None


def room_for_dummies(config: ModelConfig, modes: tuple[str, ...]) -> RoomForDummies | None:
    """What fits and is nearest to dummy weights of these sizes in these modes: other modes, a preset, fewer layers.

    Args:
        config: the sizes that are asked for.
        modes: keys of :data:`MODES` that are asked for.

    Returns:
        What fits; all that was asked for where the system does not tell of its memory, None where nothing fits.
    """
    available = available_bytes()
    asked = DummyModel(config)
    if available is None or _all_fit(asked, config.num_layers, modes, available):
        return RoomForDummies(None, modes)
    smaller = sorted(PRESETS, key=lambda name: total_bytes(rank_parts(PRESETS[name], Recipe())), reverse=True)
    models = [(None, asked), *((name, DummyModel(PRESETS[name])) for name in smaller)]
    for name, dummies in models:
        fitting = tuple(mode for mode in MODES if fits(_needed_bytes(dummies, mode), available))
        if fitting:
            return RoomForDummies(name, fitting)
    for name, dummies in models:
        for few in (modes, *((mode,) for mode in MODES)):
            layers = _most_layers(dummies, few, available)
            if layers:
                return RoomForDummies(name, few, layers)
    return None


def _most_layers(dummies: DummyModel, modes: tuple[str, ...], available: int) -> int:
    """The most layers, fewer than there are, of which every mode fits; 0 for none."""
    fewer = range(1, dummies.config.num_layers)
    return max((layers for layers in fewer if _all_fit(dummies, layers, modes, available)), default=0)


def _all_fit(dummies: DummyModel, layers: int, modes: tuple[str, ...], available: int) -> bool:
    """Whether every mode of a model of so many layers fits."""
    fewer = replace(dummies, config=replace(dummies.config, num_layers=layers))
    return all(fits(_needed_bytes(fewer, mode), available) for mode in modes)


def _in_dtype(source: WeightSource, dtype: torch.dtype) -> WeightSource:
    """The same model; dummies are drawn in the dtype that they will be cast to, so that they need no copy."""
    return replace(source, dtype=dtype) if isinstance(source, DummyModel) else source


def _needed_bytes(source: WeightSource, mode: str) -> int:
    """Memory of both sides: the weights that Hugging Face runs, with projections joined, and our packed copy."""
    dtype = MODES[mode].dtype
    weights = rank_parts(source.config, Recipe(dtype=str(dtype).removeprefix("torch.")))
    return _in_dtype(source, dtype).held_bytes + 2 * total_bytes(weights) + CPU_BYTES


class _Pair:
    """Hugging Face and ourselves with the same model in one mode, ready to take turns."""

    def __init__(self, checkpoint: WeightSource, mode: str, options: BenchmarkOptions) -> None:
        how = MODES[mode]
        self.mode, self.options = mode, options
        weights = checkpoint.weights(how.dtype)
        weights = replace(weights, layers=list(weights.layers))
        self.reference = HFReference.from_weights(checkpoint.config, weights, how.dtype)
        longest = max(options.prompt_len, options.prefill_len)
        limits = BuildLimits(max_batch_size=1, max_input_len=longest, max_output_len=options.decode_tokens)
        self.session = TorchSession(
            checkpoint.config, _quantized(weights, how), SessionOptions(how.dtype, "cpu", limits=limits)
        )
        self.vocab_size = checkpoint.config.vocab_size

    def decode(self, report: Reporter) -> Speed:
        """Time per token after a short prompt."""
        prompt, tokens = self._ids(self.options.prompt_len), self._ids(self.options.decode_tokens)
        rounds = self._take_turns(
            "decode", report, lambda: (self._hf_decode(prompt, tokens), self._our_decode(prompt, tokens))
        )
        return _speed(self.mode, "decode", len(tokens), rounds)

    def prefill(self, report: Reporter) -> Speed:
        """Time for one long prompt, logits of its last token only."""
        prompt = self._ids(self.options.prefill_len)
        rounds = self._take_turns("prefill", report, lambda: (self._hf_prefill(prompt)[1], self._our_prefill(prompt)))
        return _speed(self.mode, "prefill", len(prompt), rounds)

    def _take_turns(self, task: str, report: Reporter, once: Callable[[], tuple[float, float]]) -> list[Round]:
        """The times of all rounds but the first, which warms both sides up."""
        name, total = f"benchmark: {self.mode} {task}", self.options.rounds + 1
        rounds = []
        for done in range(total):
            report(ProgressEvent(name, done, total, "rounds"))
            rounds.append(once())
        report(ProgressEvent(name, total, total, "rounds"))
        return rounds[1:]

    def _ids(self, length: int) -> list[int]:
        generator = torch.Generator().manual_seed(length)
        ids: list[int] = torch.randint(0, self.vocab_size, (length,), generator=generator).tolist()
        return ids

    def _hf_prefill(self, prompt: Sequence[int]) -> tuple[DynamicCache, float]:
        cache, ids = DynamicCache(), torch.tensor([prompt])
        start = time.perf_counter()
        with torch.inference_mode():
            self.reference.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache, 1e3 * (time.perf_counter() - start)

    def _hf_decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        cache, _ = self._hf_prefill(prompt)
        inputs = [torch.tensor([[token]]) for token in tokens]
        times = []
        with torch.inference_mode():
            for ids in inputs:
                start = time.perf_counter()
                self.reference.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def _our_prefill(self, prompt: Sequence[int]) -> float:
        start = time.perf_counter()
        self.session.prefill([prompt])
        return 1e3 * (time.perf_counter() - start)

    def _our_decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        self.session.prefill([prompt])
        times = []
        for ids in [torch.tensor([token]) for token in tokens]:
            start = time.perf_counter()
            self.session.decode(ids)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def _speed(mode: str, task: str, tokens: int, rounds: Sequence[Round]) -> Speed:
    ratios = [hf_ms / workbench_ms for hf_ms, workbench_ms in rounds]
    return Speed(
        mode=mode,
        task=task,
        tokens=tokens,
        hf_dtype=str(MODES[mode].dtype).removeprefix("torch."),
        hf_ms=statistics.median(hf_ms for hf_ms, _ in rounds),
        workbench_ms=statistics.median(workbench_ms for _, workbench_ms in rounds),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
    )


def _quantized(weights: ModelWeights, how: Mode) -> ModelWeights:
    """The same model with its layers' linears, but not the head, quantized."""

    def quantized(linear: LinearWeight) -> LinearWeight:
        assert isinstance(linear, DenseWeight)
        return quantize_linear(linear, how.weights, how.dtype)

    def layer_of(layer: LayerWeights) -> LayerWeights:
        return replace(
            layer,
            qkv=quantized(layer.qkv),
            o=quantized(layer.o),
            gate_up=quantized(layer.gate_up),
            down=quantized(layer.down),
        )

    return replace(weights, layers=[layer_of(layer) for layer in weights.layers])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
