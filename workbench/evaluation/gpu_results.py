"""What a GPU benchmark found: lines, tables, and whether two runs can be put together. Times nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workbench
from workbench.backends.kernels.nvrtc import cache_dir
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import pandas as pd

DECODE, PREFILL = "decode", "prefill"
# Folders and files of the package whose code a time depends on.
TIMED_CODE = (
    "backends",
    "model",
    "runtime",
    *(f"evaluation/gpu_{part}.py" for part in ("benchmark", "clock", "options", "reference")),
)


@dataclass(frozen=True)
class GpuSpeed:
    """One line of the table.

    Attributes:
        mode: key of :data:`workbench.evaluation.gpu_options.GPU_MODES`, or "hf eager", "hf compiled".
        batch, context: rows, and tokens of each: before the first step, or of the prompts.
        step_ms: one token for every row, the mean over the steps; or all prompts, the median of several times.
        tokens_per_s: of all rows together; of a prefill, those of the prompts.
        moved_bytes: weights, keys and values that a step reads, at the mean context of the timed steps; of a prefill,
            the weights, and the keys and values that it writes.
        bandwidth_share: ``moved_bytes / step_ms`` over the measured bandwidth.
        flops: of the products and of attention in one step or prefill.
        peak_bytes: most device memory in use.
        task: "decode" or "prefill".
        steps: that were timed; 0 of a prefill.
        case_seconds: what the case took in all: loading weights where it is the first of its mode, compiling, warming
            up, timing.
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
    task: str = DECODE
    steps: int = 0
    case_seconds: float = 0.0

    @property
    def tflops(self) -> float:
        """10^12 floating-point operations a second."""
        return self.flops / (self.step_ms / 1e3) / 1e12

    @property
    def label(self) -> str:
        """Which case this is, as words."""
        return label(self.mode, self.task, self.batch, self.context)


def label(mode: str, task: str, batch: int, context: int) -> str:
    """A case as words: no two have the same."""
    if task == PREFILL:
        return f"{mode} prefill of {batch} x {context} tokens"
    return f"{mode} batch {batch} context {context}"


@dataclass(frozen=True)
class Conditions:
    """What times depend on; lines of equal conditions may stand in one table.

    Attributes:
        model: its name.
        config: its sizes, as plain values.
        steps: decoding steps that are timed.
        gpu: its name.
        versions: of torch, CUDA, Triton, transformers and the driver.
        code: SHA-256 of the package's own code that is timed.
    """

    model: str
    config: Mapping[str, Any]
    steps: int
    gpu: str
    versions: Mapping[str, str]
    code: str

    def differences(self, other: Conditions) -> list[str]:
        """Names of what is not the same, as JSON has it."""
        mine, others = (json.loads(json.dumps(asdict(each))) for each in (self, other))
        return [name for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class GpuBenchmarkResult:
    """All lines so far, and what they hold for.

    Attributes:
        options: what was asked for, as plain values.
        bandwidth: bytes a second of a large copy, read and written bytes together.
        skipped: cases that were not run, and why.
        date: when it was begun, as 2026-11-30.
        seconds: how long it took in all.
    """

    conditions: Conditions
    options: Mapping[str, Any]
    bandwidth: float
    speeds: tuple[GpuSpeed, ...]
    skipped: tuple[str, ...]
    date: str = ""
    seconds: float = 0.0

    @property
    def model(self) -> str:
        return self.conditions.model

    @property
    def gpu(self) -> str:
        return self.conditions.gpu

    @property
    def frame(self) -> pd.DataFrame:
        """One row per line, columns named as the fields of :class:`GpuSpeed`, and ``tflops``."""
        import pandas as pd

        columns = [*(item.name for item in dataclasses.fields(GpuSpeed)), "tflops"]
        return pd.DataFrame([asdict(speed) | {"tflops": speed.tflops} for speed in self.speeds], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            **asdict(self.conditions),
            "options": dict(self.options),
            "bandwidth": self.bandwidth,
            "speeds": [asdict(speed) | {"tflops": speed.tflops} for speed in self.speeds],
            "skipped": list(self.skipped),
            "date": self.date,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, content: Any) -> GpuBenchmarkResult:
        """What :meth:`to_dict` gave.

        Raises:
            WorkbenchError: it is something else.
        """
        try:
            conditions = {item.name: content[item.name] for item in dataclasses.fields(Conditions)}
            names = [item.name for item in dataclasses.fields(GpuSpeed)]
            speeds = tuple(
                GpuSpeed(**{name: speed[name] for name in names if name in speed}) for speed in content["speeds"]
            )
            rest = {name: content[name] for name in ("options", "bandwidth", "date", "seconds")}
            return cls(Conditions(**conditions), speeds=speeds, skipped=tuple(content["skipped"]), **rest)
        except (KeyError, TypeError) as error:
            raise WorkbenchError(
                f"this is no result of a GPU benchmark ({error} is missing or of another type)",
                fix="begin anew, without --resume",
            ) from error

    def cases(self) -> set[str]:
        """Labels of all cases that need not be run again: timed, or known not to run."""
        return {speed.label for speed in self.speeds} | {line.partition(":")[0] for line in self.skipped}


def in_order(speeds: Iterable[GpuSpeed], modes: Iterable[str]) -> tuple[GpuSpeed, ...]:
    """Lines as tables have them: mode by mode, decoding first, short contexts first."""
    place = {mode: number for number, mode in enumerate(modes)}
    return tuple(
        sorted(speeds, key=lambda speed: (place.get(speed.mode, len(place)), speed.task, speed.context, speed.batch))
    )


def code_checksum() -> str:
    """SHA-256 of what is timed and of what times it, and of the tiles that were measured here."""
    root, digest = Path(workbench.__file__).parent, hashlib.sha256()
    for part in TIMED_CODE:
        found = [root / part] if (root / part).is_file() else (root / part).rglob("*")
        for file in sorted(path for path in found if path.suffix in (".py", ".cu", ".cuh", ".json")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    tuned = cache_dir() / "tiles.json"
    digest.update(tuned.read_bytes() if tuned.is_file() else b"")
    return digest.hexdigest()
