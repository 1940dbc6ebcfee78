"""Measure the anonymous memory of a calibration: ``python tests/quantization/measure_calibration_memory.py``.

Writes a random checkpoint of about 4 GB in InternLM-7B's widths, calibrates it with 8 windows of 512 tokens in a fresh
process, and prints one JSON line. Anonymous memory (RssAnon) leaves out pages of mapped files, which the system can
drop at any time. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.peak_memory import Peak, anonymous_bytes, figures_of_fresh_process
from tests.quantization.measure_conversion_memory import FOUR_GB
from workbench.checkpoint.demo import RandomModelSpec, write_random_model
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate

WINDOWS, LENGTH = 8, 512


def measure(model: Path, out: Path) -> dict[str, float]:
    """Calibrate ``model`` in this process and say what it took."""
    source = HFCheckpoint.open(model)
    ids = torch.randint(0, source.config.vocab_size, (WINDOWS + 2, LENGTH), generator=torch.Generator().manual_seed(0))
    data = CalibrationWindows(ids[:WINDOWS], "random tokens", "", tune=ids[WINDOWS:])
    before, start = anonymous_bytes(), time.perf_counter()
    with Peak() as peak:
        calibrate(model, data, out, CalibrationOptions())
    return {
        "source_bytes": sum(file.specs[name].bytes for name, file in source.files.items()),
        "windows": WINDOWS,
        "peak_anonymous_bytes": peak.bytes - before,
        "allowed_bytes": 2_500_000_000,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_in_fresh_process(folder: Path, spec: RandomModelSpec = FOUR_GB) -> dict[str, float]:
    """Write a random model into ``folder`` and calibrate it in a process of its own."""
    write_random_model(folder / "model", spec)
    return figures_of_fresh_process(__file__, "--model", folder / "model", "--out", folder / "ranges")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="calibrate this folder instead of writing a random model")
    parser.add_argument("--out", type=Path, help="where the ranges go; with --model")
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args.model, args.out)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_in_fresh_process(Path(folder))))


if __name__ == "__main__":
    main()
