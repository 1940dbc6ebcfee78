"""``workbench benchmark``: decode and prefill speed against Hugging Face, on this machine's CPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.dummy_flags import add_dummy_flags, described, dummy_model, require_no_preset, sizes_of_the_model
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
    parser.add_argument("--model_dir", type=Path, metavar="M", help="Hugging Face checkpoint")
    parser.add_argument(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="out of float32 bfloat16 int8 float16 (default: float32 bfloat16 int8); int8 is weight-only with a "
        "bfloat16 head, against Hugging Face in bfloat16",
    )
    for name, text in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    add_dummy_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    from workbench.evaluation.benchmark import BenchmarkOptions, benchmark

    chosen = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
    if args.modes is not None:
        chosen["modes"] = tuple(args.modes)
    options = BenchmarkOptions(**chosen)
    model = _model(args)
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


def _model(args: argparse.Namespace) -> Path | DummyModel:
    """The checkpoint's folder, or dummy weights."""
    if args.model_dir is not None:
        require_no_preset(args, "--model_dir")
        for line in sizes_of_the_model(args):
            print(line)
        folder: Path = args.model_dir
        return folder
    dummy = dummy_model(args)
    if dummy is None:
        raise UsageError("no model is named", allowed="--model_dir, or --preset for dummy weights")
    print(described(args))
    return dummy


COMMAND = Command(
    name="benchmark",
    summary="Time decode and prefill on the CPU, in turns with Hugging Face.",
    example="""
workbench benchmark --model_dir demo/model --modes bfloat16 int8
workbench benchmark --preset internlm2-7b --n_layer 4 --modes bfloat16
""",
    add_flags=_add_flags,
    run=_run,
)
