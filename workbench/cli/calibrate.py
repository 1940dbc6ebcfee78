"""``workbench calibrate``: text through a model -> ranges of its activations."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.calibration_flags import add_pace_flags, add_text_flags, check_text_flags, text_paths, text_source
from workbench.cli.command import Command, Outcome
from workbench.cli.progress_bars import ProgressBars
from workbench.errors import Cancelled
from workbench.recipe import DTYPES

if TYPE_CHECKING:
    from workbench.quantization.ranges import ActivationRanges


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_dir", type=Path, required=True, help="folder of the Hugging Face checkpoint")
    parser.add_argument("-o", "--output_dir", type=Path, required=True, metavar="RANGES", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace RANGES, or an unfinished one of other choices")
    text = parser.add_argument_group("text (default: Python's language reference, its part for calibration)")
    add_text_flags(text)
    text.add_argument("--tune_samples", type=int, default=16, help="other windows that rows come from (default: 16)")
    how = parser.add_argument_group("how")
    how.add_argument("--rows", type=int, default=256, help="input rows kept of each linear layer (default: 256)")
    add_pace_flags(how)
    how.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of activations (default: bfloat16)")


def _run(args: argparse.Namespace) -> Outcome:
    check_text_flags(args)

    from workbench.checkpoint.hf_config import read_model_config
    from workbench.checkpoint.output_folder import check_apart
    from workbench.quantization.calibration import CalibrationOptions, calibrate, check_target
    from workbench.quantization.calibration_data import WindowCounts, calibration_windows
    from workbench.runtime.tokenizer import load_tokenizer

    options = CalibrationOptions(args.dtype, args.device, args.batch, args.chunk, args.rows)
    counts = WindowCounts(args.samples, args.length, args.tune_samples)
    for source in (args.model_dir, *text_paths(args)):
        check_apart(source, args.output_dir)
    check_target(args.output_dir, force=args.force)
    read_model_config(args.model_dir)  # what is wrong with the folder is told before what it lacks
    tokenizer = load_tokenizer(args.model_dir, trust_remote_code=args.trust_remote_code)
    data = calibration_windows(tokenizer, text_source(args), counts)
    tune_samples = 0 if data.tune is None else len(data.tune)
    start = time.perf_counter()
    try:
        with ProgressBars() as report:
            ranges = calibrate(args.model_dir, data, args.output_dir, options, force=args.force, report=report)
    except KeyboardInterrupt:
        raise Cancelled("cancelled; the same command goes on where it was") from None
    seconds = time.perf_counter() - start
    _show(ranges, args.output_dir, seconds, tune_samples)
    (source,) = ranges.source
    return Outcome(
        {
            "ranges_dir": args.output_dir,
            "dataset": source.dataset,
            "text_sha256": source.text_sha256,
            "samples": source.windows,
            "length": source.length,
            "tokens": source.tokens,
            "tune_samples": tune_samples,
            "dtype": source.dtype,
            "model_fingerprint": source.model_fingerprint,
            "linears": [_figures(ranges, linear) for linear in ranges.inputs],
            "seconds": seconds,
        }
    )


def _show(ranges: ActivationRanges, out: Path, seconds: float, tune_samples: int) -> None:
    (source,) = ranges.source
    print(f"saw {source.tokens:,} tokens of {source.dataset} (SHA-256 {source.text_sha256[:12]}) in {source.dtype}")
    widest = max(ranges.inputs, key=lambda linear: float(ranges.inputs[linear].max()))
    largest, most = ranges.percentile(f"{widest}.input", 100.0), ranges.percentile(f"{widest}.input", 99.99)
    print(f"largest input: {widest}, {largest:.4g}; 99.99 % of its values are up to {most:.4g}")
    if not tune_samples:
        print("no rows for tuning: the text has no windows left beside those of the ranges, or none were asked for")
    print(f"wrote {out}, {seconds:.1f} s")


def _figures(ranges: ActivationRanges, linear: str) -> dict[str, Any]:
    """The spread of one linear layer's input and output: maximum and percentiles 99, 99.9, 99.99."""
    figures: dict[str, Any] = {"linear": linear}
    for side in ("input", "output"):
        places = (99.0, 99.9, 99.99, 100.0)
        figures[side] = {f"{percent:g}": ranges.percentile(f"{linear}.{side}", percent) for percent in places}
    return figures


COMMAND = Command(
    name="calibrate",
    summary="Run text through a model and write the ranges of its activations.",
    example="""
workbench calibrate --model_dir demo/model -o demo/ranges
workbench calibrate --model_dir demo/model --dataset cnn_dailymail:3.0.0 --samples 512 -o demo/cnn_ranges
workbench calibrate --model_dir demo/model --text README.md --samples 16 -o demo/readme_ranges
""",
    add_flags=_add_flags,
    run=_run,
)
