"""Measure the anonymous memory of a conversion: ``python tests/quantization/measure_conversion_memory.py``.

Writes a random checkpoint of about 4 GB in InternLM-7B's widths, converts it in a fresh process, and prints one JSON
line. Anonymous memory (RssAnon) leaves out pages of mapped files, which the system can drop at any time. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from workbench.checkpoint.demo import RandomModelSpec, write_random_model
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.quantization.convert import convert, plan_conversion
from workbench.recipe import Int8WeightOnly, Recipe

FOUR_GB = RandomModelSpec(
    layers=6, hidden=4096, heads=32, intermediate=11008, vocab=103168, dtype="float16", shard_bytes=2_000_000_000
)
RECIPE = Recipe(dtype="bfloat16", weights=Int8WeightOnly(), keep=())


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Peak:
    """The largest RssAnon while the block runs, sampled every 2 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(model: Path, out: Path) -> dict[str, float]:
    """Convert ``model`` in this process and say what it took."""
    source = HFCheckpoint.open(model)
    sizes = [file.places[name].spec.bytes for name, file in source.files.items()]
    before, start = anonymous_bytes(), time.perf_counter()
    with Peak() as peak:
        convert(model, RECIPE, out)
    return {
        "source_bytes": sum(sizes),
        "largest_tensor_bytes": max(sizes),
        "peak_anonymous_bytes": peak.bytes - before,
        "planned_memory_bytes": plan_conversion(model, RECIPE).memory_bytes,
        "allowed_bytes": 2 * max(sizes) + 300_000_000,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_in_fresh_process(folder: Path, spec: RandomModelSpec = FOUR_GB) -> dict[str, float]:
    """Write a random model into ``folder`` and convert it in a process of its own."""
    write_random_model(folder / "model", spec)
    command = [sys.executable, __file__, "--model", str(folder / "model"), "--out", str(folder / "checkpoint")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="convert this folder instead of writing a random model")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes; with --model")
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args.model, args.out)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_in_fresh_process(Path(folder))))


if __name__ == "__main__":
    main()
