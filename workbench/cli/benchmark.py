"""``workbench benchmark``: speed beside Hugging Face, on the CPU, or of dummy weights on a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.benchmark_gpu import FILES, GPU_FLAGS, Found, add_gpu_flags, flags_given, found_kept, run_gpu
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.dummy_flags import (
    add_dummy_flags,
    described,
    dummy_config,
    dummy_model,
    require_no_preset,
    sizes_of_the_model,
)
from workbench.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from workbench.checkpoint.dummy_model import DummyModel

# Flags, and what each is; the defaults stand in BenchmarkOptions.
NUMBERS = {
    "threads": "threads of both sides (default: 2)",
    "rounds": "how often the two take turns (default: 7)",
    "prompt_len": "prompt before decoding, in tokens (default: 16)",
    "decode_tokens": "tokens decoded in a round (default: 16)",
    "prefill_len": "prompt of the prefill, in tokens (default: 512)",
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_dir", type=Path, metavar="M", help="Hugging Face checkpoint, timed on the CPU")
    parser.add_argument(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="CPU: out of float32 bfloat16 int8 float16 (default: float32 bfloat16 int8); int8 is weight-only with a "
        "bfloat16 head, against Hugging Face in bfloat16. GPU: out of float16 int8 int4 w8a8 float16+kv8 w8a8+kv8 "
        "(default: all)",
    )
    add_dummy_flags(parser)
    cpu = parser.add_argument_group("on the CPU", "Any of these times dummy weights on the CPU.")
    for name, text in NUMBERS.items():
        cpu.add_argument(f"--{name}", type=int, metavar="N", help=text)
    add_gpu_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    with found_kept(args) as found:
        return _timed(args, found)


def _timed(args: argparse.Namespace, found: Found) -> Outcome:
    if args.model_dir is not None:
        require_no_preset(args, "--model_dir")
        _require_none(args, GPU_FLAGS, "--model_dir, which is timed on the CPU", "give --preset in its place")
        for line in sizes_of_the_model(args):
            print(line)
        return _run_cpu(args, args.model_dir)
    # Before a device is looked for: what is named must make a model.
    config = dummy_config(args)
    if config is None:
        raise UsageError("no model is named", allowed="--model_dir, or --preset for dummy weights")
    if _wants_gpu(args):
        return run_gpu(args, config, found)
    print(described(args))
    model = dummy_model(args)
    assert model is not None
    return _run_cpu(args, model)


def _require_none(args: argparse.Namespace, names: tuple[str, ...], beside: str, fix: str) -> None:
    given = flags_given(args, names)
    if given:
        raise UsageError(f"{', '.join(given)} beside {beside}", fix=fix)


def _wants_gpu(args: argparse.Namespace) -> bool:
    """Where dummy weights are timed: as the flags say; without any, on a GPU if there is one.

    Raises:
        UsageError: flags of both.
    """
    gpu, cpu = (flags_given(args, names) for names in (GPU_FLAGS, NUMBERS))
    if gpu:
        one_of_them = f"to time on the CPU leave out {', '.join(gpu)}; to time on a GPU leave out {', '.join(cpu)}"
        _require_none(args, tuple(NUMBERS), ", ".join(gpu), one_of_them)
        return True
    if cpu:
        return False
    import torch

    return torch.cuda.is_available()


def _run_cpu(args: argparse.Namespace, model: Path | DummyModel) -> Outcome:
    from workbench.evaluation.benchmark import BenchmarkOptions, benchmark

    chosen = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
    if args.modes is not None:
        chosen["modes"] = tuple(args.modes)
    options = BenchmarkOptions(**chosen)
    with ProgressBars() as report:
        outcome = benchmark(model, options, report)
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
    summary="Time a checkpoint on the CPU, or dummy weights on the CPU or a GPU, beside Hugging Face.",
    example="""
workbench benchmark --model_dir demo/model --modes bfloat16 int8
workbench benchmark --preset internlm2-7b --n_layer 4 --modes bfloat16 --threads 2
workbench benchmark --preset internlm2-1.8b --tune  # on an NVIDIA GPU
workbench benchmark --preset internlm2-1.8b --dummy --json demo/speeds.json --roofline demo/roofline.png  # on a GPU
""",
    add_flags=_add_flags,
    run=_run,
    files=FILES,
)
