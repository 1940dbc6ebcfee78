"""What lies in a cache of calibrations: what each is called, and whether it is the one that is asked for.

Reads headers only. Makes nothing, and knows no bench.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, windows_sha256
from workbench.quantization.ranges import ActivationRanges, RangesSource, read_metadata
from workbench.quantization.row_sample import ROWS_FILE

# A file of ours that was cut short or written over fails in any of these ways; the workbench's errors are ValueErrors.
UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class CachedCalibration:
    """A calibration whose header can be read.

    Attributes:
        name: what it is called in menus; no other in the cache is called so.
        folder: where it lies.
        tokens: that its ranges saw.
    """

    name: str
    folder: Path
    tokens: int


def readable(folders: Iterable[Path]) -> list[CachedCalibration]:
    """The calibrations among folders, in their order; those that cannot be read are passed over."""
    sources = {folder: found for folder in folders if (found := _source(folder))}
    names = {folder: _label(found) for folder, found in sources.items()}
    for telling in (lambda folder: f"text {sources[folder][-1].text_sha256[:6]}", lambda folder: folder.name):
        often = Counter(names.values())
        names = {folder: f"{name}, {telling(folder)}" if often[name] > 1 else name for folder, name in names.items()}
    return [
        CachedCalibration(names[folder], folder, sum(run.tokens for run in found)) for folder, found in sources.items()
    ]


def label(folder: Path) -> str:
    """What a calibration is called where no other is near.

    Raises:
        CheckpointError: it is none.
    """
    return _label(ActivationRanges.read_source(folder))


def is_of(folder: Path, windows: CalibrationWindows, options: CalibrationOptions) -> bool:
    """Whether a calibration's folder holds what these very windows and options give."""
    source = _source(folder)
    if source is None or len(source) != 1:
        return False
    run = source[0]
    seen = (run.text_sha256, (run.windows, run.length), run.dtype)
    if seen != (windows.text_sha256, tuple(windows.ranges.shape), options.dtype):
        return False
    rows = folder / ROWS_FILE
    if windows.tune is None:
        return not rows.exists()
    try:
        kept = json.loads(read_metadata(SafetensorsFile(rows))["run"])
        return (kept["tune text"], kept["rows"]) == (windows_sha256(windows.tune), str(options.rows))
    except UNREADABLE:
        return False


def _source(folder: Path) -> tuple[RangesSource, ...] | None:
    """The runs that a folder's ranges came from; None where that cannot be read."""
    try:
        return ActivationRanges.read_source(folder) or None
    except UNREADABLE:
        return None


def _label(source: tuple[RangesSource, ...]) -> str:
    run = source[-1]
    dtype = "" if run.dtype == CalibrationOptions().dtype else f", {run.dtype}"
    more = f" and {len(source) - 1} more" if len(source) > 1 else ""
    return f"{run.dataset}, {run.windows} x {run.length} tokens{dtype}{more}"
