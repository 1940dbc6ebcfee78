"""Small random models with ranges and held-out rows, as a calibration leaves them. Needs torch and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import RowSample, load_rows

# Multi-head, grouped-query with and without bias.
MODELS = {"mha": {}, "gqa": {"kv_heads": 2, "bias": False}, "gqa_bias": {"kv_heads": 1}}


@dataclass(frozen=True)
class Calibrated:
    """A model's folder, opened, and what its calibration left."""

    source: HFCheckpoint
    ranges: ActivationRanges
    rows: RowSample


def random_windows(count: int, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(0, 97, (count, length), generator=torch.Generator().manual_seed(seed))


def calibrated(model_dir: Path, out: Path) -> Calibrated:
    """Ranges of a few windows, rows of two others, in float32."""
    data = CalibrationWindows(random_windows(4), "random", "0" * 64, tune=random_windows(2, seed=1))
    ranges = calibrate(model_dir, data, out, CalibrationOptions(dtype="float32", rows=20))
    return Calibrated(HFCheckpoint.open(model_dir), ranges, load_rows(out))
