"""Measure the anonymous memory of conversions: ``python tests/quantization/measure_conversion_memory.py``.

Writes random checkpoints of about 4 GB in the widths of InternLM-7B and InternLM2-7B, as shards of safetensors and of
pytorch_model.bin, converts each in a fresh process for each kind, and prints one JSON line for each. Anonymous memory
(RssAnon) leaves out pages of mapped files, which the system can drop at any time. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.checkpoint.bin_folder import to_bin
from tests.peak_memory import Peak, anonymous_bytes, figures_of_fresh_process
from workbench.checkpoint.demo import RandomModelSpec, write_random_model
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified_layout import linear_names, linear_shape, site_of
from workbench.quantization.calibrated import (
    CalibratedOptions,
    convert_calibrated,
    plan_calibrated,
    plan_quantized,
    quantize_calibrated,
)
from workbench.quantization.convert import ConversionPlan, convert, plan_conversion
from workbench.quantization.ranges import ActivationRanges, RangesSource
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

FOUR_GB = RandomModelSpec(
    layers=6, hidden=4096, heads=32, intermediate=11008, vocab=103168, dtype="float16", shard_bytes=2_000_000_000
)
FOUR_GB_2 = replace(FOUR_GB, format="internlm2", kv_heads=8, intermediate=14336, vocab=92544)
RECIPES = {
    "int8": Recipe(dtype="bfloat16", weights=Int8WeightOnly(), keep=()),
    "int4_kv": Recipe(dtype="bfloat16", weights=Int4WeightOnly(), keep=(), kv_cache=Int8KVCache()),
    "smoothquant_kv": Recipe(
        dtype="bfloat16", weights=SmoothQuant(activation="per_tensor"), keep=(), kv_cache=Int8KVCache()
    ),
}
CALIBRATED = CalibratedOptions("bfloat16", SmoothQuant())
KINDS = (*RECIPES, "calibrated", "from_calibrated")
# Source -> the model, whether it is turned into .bin files, and what it is converted to.
SOURCES: dict[str, tuple[RandomModelSpec, bool, tuple[str, ...]]] = {
    "internlm safetensors": (FOUR_GB, False, KINDS),
    "internlm bin": (FOUR_GB, True, ("int8", "smoothquant_kv")),
    "internlm2 safetensors": (FOUR_GB_2, False, ("int8", "smoothquant_kv")),
    "internlm2 bin": (FOUR_GB_2, True, ("int8", "smoothquant_kv")),
}


def random_ranges(source: HFCheckpoint) -> ActivationRanges:
    """Maxima of the model's shapes; memory does not depend on their values."""
    config, generator = source.config, torch.Generator().manual_seed(0)
    shapes = {linear: linear_shape(config, site_of(linear)) for linear in linear_names(config)}
    heads = {layer: torch.rand(config.num_kv_heads, generator=generator) + 1 for layer in range(config.num_layers)}
    return ActivationRanges(
        source=(RangesSource("random", "0" * 64, 1, 1, 1, source.fingerprint(), "float32"),),
        inputs={linear: torch.rand(shape[1], generator=generator) + 1 for linear, shape in shapes.items()},
        outputs={linear: torch.rand(shape[0], generator=generator) + 1 for linear, shape in shapes.items()},
        keys=heads,
        values=heads,
    )


def run(kind: str, model: Path, out: Path, ranges: ActivationRanges) -> ConversionPlan:
    """One conversion; returns what was planned for it."""
    if kind in RECIPES:
        convert(model, RECIPES[kind], out, ranges=ranges)
        return plan_conversion(model, RECIPES[kind])
    if kind == "calibrated":
        convert_calibrated(model, out, ranges, CALIBRATED)
        return plan_calibrated(model, ranges, CALIBRATED)
    quantize_calibrated(model, RECIPES["smoothquant_kv"], out)
    return plan_quantized(model, RECIPES["smoothquant_kv"])


def measure(kind: str, model: Path, out: Path) -> dict[str, float | str]:
    """Convert ``model`` in this process and say what it took."""
    source = None if kind == "from_calibrated" else HFCheckpoint.open(model)
    ranges = ActivationRanges.load(model) if source is None else random_ranges(source)
    sizes = [] if source is None else [file.specs[name].bytes for name, file in source.files.items()]
    before, start = anonymous_bytes(), time.perf_counter()
    with Peak() as peak:
        plan = run(kind, model, out, ranges)
    return {
        "kind": kind,
        "source_bytes": sum(sizes),
        "largest_tensor_bytes": max(sizes, default=0),
        "peak_anonymous_bytes": peak.bytes - before,
        "planned_memory_bytes": plan.memory_bytes,
        "allowed_bytes": 2 * max(sizes, default=0) + 300_000_000,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_in_fresh_process(kind: str, model: Path, out: Path) -> dict[str, float]:
    """Convert ``model`` in a process of its own; a calibrated checkpoint is the model of "from_calibrated"."""
    return figures_of_fresh_process(__file__, "--kind", kind, "--model", model, "--out", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, help="measure one kind, with --model and --out")
    parser.add_argument("--model", type=Path, help="convert this folder instead of writing a random model")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes; with --model")
    parser.add_argument("--source", choices=SOURCES, help="measure one source alone")
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(measure(args.kind, args.model, args.out)))
        return
    for source in [args.source] if args.source else SOURCES:
        with tempfile.TemporaryDirectory() as name:
            measure_source(source, Path(name))


def measure_source(source: str, folder: Path) -> None:
    """Write one source and print what each of its conversions took."""
    spec, as_bin, kinds = SOURCES[source]
    write_random_model(folder / "model", spec)
    if as_bin:
        to_bin(folder / "model")
    for kind in kinds:
        model = folder / ("calibrated" if kind == "from_calibrated" else "model")
        print(json.dumps({"source": source, **measure_in_fresh_process(kind, model, folder / kind)}), flush=True)


if __name__ == "__main__":
    main()
