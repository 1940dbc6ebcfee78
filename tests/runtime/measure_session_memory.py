"""Measure the memory of CPU sessions beside what is planned: ``python tests/runtime/measure_session_memory.py``.

Each kind runs one batch of the longest prompts and a decode step, on dummy weights of InternLM-7B's widths, in its own
process; prints one JSON line for each. Anonymous memory beside the interpreter's own. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.peak_memory import Peak, anonymous_bytes
from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.model.presets import PRESETS
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.needs import RunJob, run_needs
from workbench.runtime.session import TorchSession

RECIPES = {
    "float32": Recipe(dtype="float32"),
    "bfloat16": Recipe(dtype="bfloat16"),
    "float16": Recipe(dtype="float16"),
    "int8": Recipe(dtype="bfloat16", weights=Int8WeightOnly()),
    "int8_kv": Recipe(dtype="bfloat16", weights=Int8WeightOnly(), kv_cache=Int8KVCache()),
    "int4": Recipe(dtype="bfloat16", weights=Int4WeightOnly()),
    "smoothquant": Recipe(dtype="bfloat16", weights=SmoothQuant()),
}


def measure(kind: str, layers: int, limits: BuildLimits) -> dict[str, float | str]:
    """Run one kind in this process."""
    config = replace(PRESETS["internlm-7b"], num_layers=layers)
    recipe = replace(RECIPES[kind], build=limits)
    before = anonymous_bytes()
    with tempfile.TemporaryDirectory() as name, Peak() as peak:
        checkpoint = write_dummy_checkpoint(Path(name) / "dummy", config, recipe)
        session = TorchSession.open(checkpoint, "cpu")
        session.prefill([[5] * limits.max_input_len] * limits.max_batch_size)
        session.decode(torch.ones(limits.max_batch_size, dtype=torch.int64))
    planned = run_needs(RunJob(config, recipe)).cpu_bytes + checkpoint.held_bytes
    measured = peak.bytes - before
    return {
        "kind": kind,
        "layers": layers,
        "batch": limits.max_batch_size,
        "input": limits.max_input_len,
        "planned_bytes": planned,
        "measured_bytes": measured,
        "measured_over_planned": round(measured / planned, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--input", type=int, default=512)
    parser.add_argument("--here", action="store_true", help="in this process, for one kind")
    args = parser.parse_args()
    if args.here:
        limits = BuildLimits(args.batch, args.input, 64)
        print(json.dumps(measure(args.kinds[0], args.layers, limits)))
        return
    sizes = ["--layers", str(args.layers), "--batch", str(args.batch), "--input", str(args.input)]
    for kind in args.kinds:
        command = [sys.executable, __file__, "--here", "--kinds", kind, *sizes]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
