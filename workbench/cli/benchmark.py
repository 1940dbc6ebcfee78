"""``workbench benchmark``: speed beside Hugging Face, of a checkpoint on the CPU or of random weights on a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.command import Command, Outcome, UsageError, require_writable
from workbench.cli.progress_bars import ProgressBars
from workbench.errors import nearest

if TYPE_CHECKING:
    from workbench.evaluation.gpu_benchmark import GpuBenchmarkResult

# Flags, and what each is; the defaults stand in BenchmarkOptions.
NUMBERS = {
    "threads": "threads of both sides (default: 2)",
    "rounds": "how often the two take turns (default: 7)",
    "prompt_len": "prompt before decoding, in tokens (default: 16)",
    "decode_tokens": "tokens decoded in a round (default: 16)",
    "prefill_len": "prompt of the prefill, in tokens (default: 512)",
}
# The same for a GPU; the defaults stand in GpuBenchmarkOptions.
GPU_LISTS = {
    "batches": "rows that decode together (default: 1 8 64)",
    "contexts": "tokens of each row before the first step (default: 128 2048)",
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_dir", type=Path, metavar="M", help="Hugging Face checkpoint, timed on the CPU")
    parser.add_argument("--preset", metavar="NAME", help="sizes to time on a GPU: internlm-7b, internlm2-7b, ...")
    parser.add_argument("--dummy", action="store_true", help="with --preset: random weights, no checkpoint is needed")
    parser.add_argument(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="CPU: out of float32 bfloat16 int8 float16 (default: float32 bfloat16 int8); int8 is weight-only with a "
        "bfloat16 head, against Hugging Face in bfloat16. GPU: out of float16 int8 int4 w8a8 float16+kv8 w8a8+kv8 "
        "(default: all)",
    )
    for name, text in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    gpu = parser.add_argument_group("on a GPU")
    for name, text in GPU_LISTS.items():
        gpu.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=text)
    gpu.add_argument("--steps", type=int, metavar="N", help="decoding steps that are timed (default: 128)")
    gpu.add_argument("--no_hugging_face", action="store_true", help="leave Hugging Face out: it takes minutes")
    gpu.add_argument("--roofline", type=Path, metavar="PNG", help="also write the figure here")


def _run(args: argparse.Namespace) -> Outcome:
    if (args.model_dir is None) == (args.preset is None):
        raise UsageError(
            "benchmark takes --model_dir (CPU) or --preset (GPU)",
            allowed="one of them",
            fix="see workbench benchmark -h",
        )
    return _run_cpu(args) if args.preset is None else _run_gpu(args)


def _run_gpu(args: argparse.Namespace) -> Outcome:
    if not args.dummy:
        raise UsageError("--preset without --dummy", fix="add --dummy: a preset has sizes, and only random weights")
    require_writable("--roofline", args.roofline)
    from workbench.backends.kernels import require_gpu
    from workbench.evaluation.gpu_presets import GPU_PRESETS

    if args.preset not in GPU_PRESETS:
        hint = nearest(args.preset, GPU_PRESETS)
        raise UsageError(f"--preset {args.preset}", allowed=", ".join(GPU_PRESETS), fix=hint or None)
    require_gpu("a benchmark with random weights")
    from workbench.evaluation.gpu_benchmark import GpuBenchmarkOptions, gpu_benchmark

    chosen: dict[str, Any] = {name: tuple(getattr(args, name)) for name in GPU_LISTS if getattr(args, name) is not None}
    if args.modes is not None:
        chosen["modes"] = tuple(args.modes)
    if args.steps is not None:
        chosen["steps"] = args.steps
    options = GpuBenchmarkOptions(hugging_face=not args.no_hugging_face, **chosen)
    with ProgressBars() as report:
        outcome = gpu_benchmark(args.preset, GPU_PRESETS[args.preset], options, report)
    _print_gpu(outcome)
    if args.roofline is not None:
        from workbench.evaluation.gpu_roofline import plot_roofline

        plot_roofline(outcome).savefig(args.roofline, dpi=130)
    return Outcome(outcome.to_dict())


def _print_gpu(outcome: GpuBenchmarkResult) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    print(f"{outcome.gpu}, {versions}; a copy moves {outcome.bandwidth / 1e9:.0f} GB/s")
    table = outcome.frame.drop(columns="flops")
    table["moved_gb"] = table.pop("moved_bytes") / 1e9
    table["peak_gb"] = table.pop("peak_bytes") / 1e9
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    for line in outcome.skipped:
        print(f"skipped {line}")


def _run_cpu(args: argparse.Namespace) -> Outcome:
    from workbench.evaluation.benchmark import BenchmarkOptions, benchmark

    chosen = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
    if args.modes is not None:
        chosen["modes"] = tuple(args.modes)
    options = BenchmarkOptions(**chosen)
    with ProgressBars() as report:
        outcome = benchmark(args.model_dir, options, report)
    print(
        f"{outcome.cpu}, {options.threads} threads, torch {outcome.torch_version}; batch 1, "
        f"medians of {options.rounds} rounds in turns with Hugging Face eager"
    )
    table = outcome.frame.rename(columns={"workbench_ms": "ours_ms", "ratio": "times as fast"})
    columns = ["mode", "task", "tokens", "hf_dtype", "hf_ms", "ours_ms", "times as fast", "ratio_low", "ratio_high"]
    print(table[columns].to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    return Outcome(outcome.to_dict())


COMMAND = Command(
    name="benchmark",
    summary="Time a checkpoint on the CPU, or random weights on a GPU, beside Hugging Face.",
    example="""
workbench benchmark --model_dir demo/model --modes bfloat16 int8
workbench benchmark --preset internlm-7b --dummy --modes float16 int4 --roofline roofline.png
""",
    add_flags=_add_flags,
    run=_run,
)
