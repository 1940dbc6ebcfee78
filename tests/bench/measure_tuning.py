"""How long tuning takes on a model of InternLM-7B's widths: what a slider asks, and all groups of some layers.

A command, not a test: ``python tests/bench/measure_tuning.py --device cuda --layers 4``. Weights are random: times do
not depend on their values. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.bench.smoothing import SmoothedView
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.random_model import RandomModelSpec, write_random_model
from workbench.quantization.alpha_search import AlphaSearch, AlphaSearchOptions
from workbench.quantization.attention_inputs import CollectOptions, collect_attention_inputs
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate
from workbench.quantization.kv_error import KVStudy
from workbench.quantization.row_sample import load_rows
from workbench.recipe import Int8KVCache, SmoothQuant

WIDTHS_OF_7B = {"hidden": 4096, "heads": 32, "intermediate": 11008, "vocab": 103168, "max_positions": 2048}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers of the random model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), given.device, given.layers), indent=1))


def measured(folder: Path, device: str, layers: int) -> dict[str, Any]:
    """Seconds and milliseconds by what was done."""
    write_random_model(folder / "model", RandomModelSpec(layers=layers, dtype="bfloat16", **WIDTHS_OF_7B))
    source = HFCheckpoint.open(folder / "model")
    windows = torch.randint(0, WIDTHS_OF_7B["vocab"], (12, 512), generator=torch.Generator().manual_seed(0))
    data = CalibrationWindows(windows[:8], "random", "0" * 64, tune=windows[8:])
    found: dict[str, Any] = {"device": _name(device), "layers": layers, "torch": torch.__version__}
    found["calibrate_s"], ranges = _timed(
        lambda: calibrate(folder / "model", data, folder / "ranges", CalibrationOptions(device=device)), device
    )
    search = AlphaSearch(source, ranges, load_rows(folder / "ranges"), AlphaSearchOptions(device=device))
    how = SmoothQuant(activation="per_tensor")
    for group in ("qkv", "o", "gate_up", "down"):
        found[f"first_error_ms.{group}"] = 1000 * _timed(lambda: search.error(0, group, how), device)[0]  # noqa: B023
        again = [_timed(lambda: search.error(0, group, how), device)[0] for _ in range(5)]  # noqa: B023
        found[f"error_ms.{group}"] = 1000 * statistics.median(again)
        found[f"curve_ms.{group}"] = 1000 * _timed(lambda: search.curve(0, group, how), device)[0]  # noqa: B023
    found["tune_all_groups_s"] = _timed(lambda: list(search.tune(how)), device)[0]
    found["smoothed_ranges_s"] = _timed(lambda: SmoothedView(source, device).ranges(ranges, how), device)[0]
    found["collect_attention_inputs_s"] = _timed(
        lambda: collect_attention_inputs(
            source, windows[8:10, :256], folder / "attention", CollectOptions(device=device)
        ),
        device,
    )[0]
    study = KVStudy(source.config, folder / "attention", ranges, device)
    study.error(0, Int8KVCache())
    found["kv_error_ms"] = 1000 * _timed(lambda: study.error(0, Int8KVCache()), device)[0]
    if device != "cpu":
        found["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _name(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
