"""Calibration: tokens through a model, ranges and sampled rows out; a run that was stopped goes on where it was.

Windows pass in chunks. Within a chunk the model runs one layer at a time, so that memory holds one layer, whatever the
model's size; after each chunk what was counted so far is saved. Numbers depend on the batch only as far as the CPU's or
GPU's kernels sum in another order for another number of rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.output_folder import check_apart, folder_kind, not_ours
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.errors import CheckpointError, LimitError, RecipeError
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.layer_walk import LayerWalk, Watcher
from workbench.quantization.range_counter import RangeCounter, linear_widths
from workbench.quantization.ranges import RANGES_FILE, ActivationRanges, RangesSource, read_metadata
from workbench.quantization.row_sample import ROWS_FILE, RowSampler, load_rows, planned_rows, spread
from workbench.recipe import DTYPES

__all__ = ["CalibrationOptions", "CalibrationWindows", "calibrate", "load_rows"]

_PROGRESS_FILE = "progress.safetensors"


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration runs.

    Attributes:
        dtype: of weights and activations.
        device: "cpu" or a CUDA device.
        batch: windows that run together.
        chunk: windows whose residual streams are held at once, and after which progress is saved.
        rows: input rows kept of every linear layer, for tuning.
    """

    dtype: str = "bfloat16"
    device: str = "cpu"
    batch: int = 8
    chunk: int = 32
    rows: int = 256

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RecipeError(f"calibration dtype is {self.dtype!r}", allowed=", ".join(DTYPES))
        for name in ("batch", "chunk", "rows"):
            if getattr(self, name) < 1:
                raise RecipeError(f"calibration {name} is {getattr(self, name)}", allowed="whole numbers from 1")


@dataclass(frozen=True)
class CalibrationWindows:
    """What a calibration reads.

    Attributes:
        ranges: ``[count, length]`` int64 token ids, from which ranges are taken.
        dataset: what the text is, in words.
        text_sha256: of the text of ``ranges``.
        tune: ``[count, length]`` token ids of *other* windows, from which rows are kept; None keeps none.
    """

    ranges: Tensor
    dataset: str
    text_sha256: str
    tune: Tensor | None = None


def calibrate(
    model_dir: str | Path,
    data: CalibrationWindows,
    out: Path,
    options: CalibrationOptions | None = None,
    *,
    force: bool = False,
    report: Reporter = silent,
) -> ActivationRanges:
    """Calibrate a model; ``out`` appears whole. Until then what is done stands in ``OUT.partial`` beside it.

    A run that was stopped goes on after the last finished chunk, and gives the very same files.

    Args:
        model_dir: the Hugging Face folder.
        data: the windows.
        out: folder for ``ranges.safetensors`` and, with tune windows, ``rows.safetensors``.
        options: dtype, device, batch, chunk, rows.
        force: replace an existing calibration, and throw away an unfinished one of other choices.
        report: told the tokens that are done; may stop the run.

    Raises:
        CheckpointError: the model is not usable, an activation is NaN or infinite, ``out`` exists, or an unfinished
            calibration of other choices stands in its way.
        LimitError: the windows are longer than the model's positions, or hold ids outside its vocabulary.
        BackendError: no such device.
    """
    run = _Calibration(HFCheckpoint.open(model_dir), data, options or CalibrationOptions(), Path(out), report)
    check_apart(Path(model_dir), run.out)
    check_target(run.out, force=force)
    run.prepare(force=force)
    ranges = run.count()
    run.sample()
    run.finish()
    return ranges


def check_target(out: Path, *, force: bool) -> None:
    """Refuse an output that may not be written, before any work is done.

    Raises:
        CheckpointError: it exists and ``force`` is not given, or is no calibration's folder.
    """
    if not os.path.lexists(out):
        return
    # A calibrated checkpoint holds ranges too, and is more than them.
    if out.is_symlink() or not (out / RANGES_FILE).is_file() or folder_kind(out) is not None:
        raise not_ours(out, "folder of a calibration")
    if not force:
        raise CheckpointError(f"output {out} exists", fix="add --force to replace it, or give another output")


class _Calibration:
    """One run: its folder, its progress, its two passes."""

    def __init__(
        self, source: HFCheckpoint, data: CalibrationWindows, options: CalibrationOptions, out: Path, report: Reporter
    ) -> None:
        source.check()
        self.source, self.data, self.options, self.out, self.report = source, data, options, out.absolute(), report
        self.dtype = torch_dtype(options.dtype)
        for windows in (data.ranges, data.tune):
            if windows is not None:
                check_windows(windows, source)
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.walk = LayerWalk(source, self.dtype, options.device)
        self.counted = RangesSource(
            dataset=data.dataset,
            text_sha256=data.text_sha256,
            windows=len(data.ranges),
            length=data.ranges.shape[1],
            tokens=data.ranges.numel(),
            model_fingerprint=source.fingerprint(),
            dtype=options.dtype,
        )

    def prepare(self, *, force: bool) -> None:
        """Make the unfinished folder, or see that the one that is there is of this very run."""
        different = self._differences()
        if different and force:
            shutil.rmtree(self.partial)
            different = []
        if different:
            raise CheckpointError(
                f"{self.partial} holds an unfinished calibration of other choices: " + ", ".join(different),
                fix="give the same again to go on with it, or add --force to start anew",
            )
        self.partial.mkdir(parents=True, exist_ok=True)
        if not (self.partial / _PROGRESS_FILE).is_file():
            # Nothing says what these are of.
            (self.partial / ROWS_FILE).unlink(missing_ok=True)

    def count(self) -> ActivationRanges:
        """The first pass: ranges of every chunk, saved after each."""
        path = self.partial / _PROGRESS_FILE
        before = ActivationRanges.load(path) if path.is_file() else None
        counter = RangeCounter(self.source.config, self.dtype, before)
        done = self._saved().windows
        for first in range(done, len(self.data.ranges), self.options.chunk):
            chunk = self.data.ranges[first : first + self.options.chunk]
            self._pass(chunk, counter.watch, "calibrate", (first, len(self.data.ranges)))
            progress = {"run": json.dumps(self._choices()), "windows": str(first + len(chunk))}
            counter.ranges(self.counted).save(path, progress)
        ranges = counter.ranges(self.counted)
        ranges.save(self.partial / RANGES_FILE)
        return ranges

    def sample(self) -> None:
        """The second pass: rows of the tune windows; begun anew when it was stopped."""
        tune, path = self.data.tune, self.partial / ROWS_FILE
        if tune is None or path.is_file():
            return
        kept = spread(len(tune), tune.shape[1], self.options.rows)
        plan = planned_rows(linear_widths(self.source.config), int(kept.sum()), self.dtype)
        unfinished = path.with_suffix(".writing")
        with SafetensorsWriter(unfinished, plan, {"kind": "input rows", "run": json.dumps(self._choices())}) as writer:
            for first in range(0, len(tune), self.options.chunk):
                chosen = slice(first, first + self.options.chunk)
                sampler = RowSampler(writer, kept[chosen], self.dtype)
                self._pass(tune[chosen], sampler.watch, "rows for tuning", (first, len(tune)), head=False)
        os.replace(unfinished, path)

    def finish(self) -> None:
        """Give the folder its name; until then its progress file says what the rest of it is of."""
        if self.out.exists():
            shutil.rmtree(self.out)
        self.partial.rename(self.out)
        (self.out / _PROGRESS_FILE).unlink()

    def _pass(self, windows: Tensor, watch: Watcher, task: str, place: tuple[int, int], *, head: bool = True) -> None:
        """Windows through the whole model; ``place``: the first of them, and how many there are in all."""
        length, steps = windows.shape[1], self.walk.steps(head=head)
        first, total = place
        for done in self.walk.run(windows, self.options.batch, watch, head=head):
            tokens = (first + len(windows) * done / steps) * length
            self.report(ProgressEvent(task, tokens, total * length, "tokens"))

    def _choices(self) -> dict[str, str]:
        """All that the files depend on, by the name that a person gives it."""
        return {
            "model": self.counted.model_fingerprint,
            "text": windows_sha256(self.data.ranges),
            "tune text": "none" if self.data.tune is None else windows_sha256(self.data.tune),
            "dataset": self.data.dataset,
            "samples": str(len(self.data.ranges)),
            "length": str(self.data.ranges.shape[1]),
            **{name: str(value) for name, value in dataclasses.asdict(self.options).items()},
        }

    def _differences(self) -> list[str]:
        """Names of the choices that the unfinished folder was made with other values of."""
        saved = self._saved().choices
        return [
            f"{name} {saved[name][:40]}, now {now[:40]}"
            for name, now in self._choices().items()
            if saved.get(name, now) != now
        ]

    def _saved(self) -> _Progress:
        path = self.partial / _PROGRESS_FILE
        if not path.is_file():
            return _Progress({}, 0)
        texts = read_metadata(SafetensorsFile(path))
        return _Progress(json.loads(texts["run"]), int(texts["windows"]))


@dataclass(frozen=True)
class _Progress:
    """How far an unfinished run came: its choices, and the windows that are counted."""

    choices: dict[str, str]
    windows: int


def check_windows(windows: Tensor, source: HFCheckpoint) -> None:
    """Refuse windows ``[count, length]`` that a model cannot take.

    Raises:
        LimitError: there are none, they are longer than its positions, or hold ids outside its vocabulary.
    """
    config = source.config
    if windows.shape[1] > config.max_position_embeddings:
        raise LimitError(
            f"windows of {windows.shape[1]} tokens",
            allowed=f"up to {config.max_position_embeddings}, the model's positions",
            fix="give a smaller --length",
        )
    if not len(windows):
        raise LimitError("no window of tokens to calibrate with", fix="give more text")
    if int(windows.min()) < 0 or int(windows.max()) >= config.vocab_size:
        raise LimitError(
            f"token id {int(windows.max())}",
            allowed=f"0 to {config.vocab_size - 1}",
            fix="the tokenizer belongs to another model",
        )


def windows_sha256(windows: Tensor) -> str:
    """The digest of windows ``[count, length]`` of token ids, as a calibration's files name them."""
    return hashlib.sha256(windows.contiguous().numpy().tobytes()).hexdigest()
