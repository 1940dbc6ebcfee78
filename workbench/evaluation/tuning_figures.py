"""Is tuning alpha by each layer's own error worth it? Tuned recipes against global ones, judged by the whole model.

``python -m workbench.evaluation.tuning_figures --model_dir DIR --ranges CALIBRATION --output FILE.md``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.evaluation.figure_files import to_stderr, typed, write_figures
from workbench.evaluation.tradeoff import TradeoffOptions, compare_recipes
from workbench.progress import Reporter, silent
from workbench.quantization.alpha_search import AlphaSearch, AlphaSearchOptions, tuned
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import load_rows
from workbench.quantization.texts import offline_part, windows
from workbench.recipe import INPUT_SCALES, WEIGHT_SCALES, Recipe, SmoothQuant
from workbench.runtime.tokenizer import load_tokenizer


def tuning_recipes(search: AlphaSearch, dtype: str, report: Reporter = silent) -> dict[str, Recipe]:
    """For every granularity: not smoothed, two global alphas, and each group tuned on held-out rows."""
    recipes: dict[str, Recipe] = {}
    for weight in WEIGHT_SCALES:
        for activation in INPUT_SCALES:
            how = SmoothQuant(weight, activation)
            choices = {
                "not smoothed": replace(how, groups=()),
                "alpha 0.85": how,
                "alpha 0.9": replace(how, alpha=0.9),
                "tuned by group": tuned(how, search.tune(how, report=report)),
            }
            place = f"weights {weight}, activations {activation}".replace("_", " ")
            recipes |= {f"{place}: {name}": Recipe(dtype=dtype, weights=each) for name, each in choices.items()}
    return recipes


def measure(
    model_dir: Path, calibration: Path, sizes: tuple[int, int], device: str = "cpu", report: Reporter = silent
) -> pd.DataFrame:
    """The table of :func:`workbench.evaluation.tradeoff.compare_recipes` for :func:`tuning_recipes`.

    Args:
        model_dir: the Hugging Face folder.
        calibration: ranges and held-out rows of it.
        sizes: test windows, and tokens in each.
        device: a torch device.
        report: progress.

    Raises:
        CheckpointError: the calibration is of another model, or kept no rows.
        LimitError: the test text is too short.
    """
    ranges = ActivationRanges.load(calibration)
    options = AlphaSearchOptions(device=device)
    search = AlphaSearch(HFCheckpoint.open(model_dir), ranges, load_rows(calibration), options)
    judged = windows(load_tokenizer(model_dir), offline_part("test"), *sizes)
    recipes = tuning_recipes(search, "bfloat16", report)
    return compare_recipes(model_dir, recipes, judged, ranges, TradeoffOptions(device=device), report)


def to_markdown(frame: pd.DataFrame, sizes: tuple[int, int], command: str) -> str:
    """The table with its intervals, and the command that made it."""
    lines = ["| recipe | perplexity | KL, nats | same first choice |", "|---|---|---|---|"]
    lines += [
        f"| {row['recipe']} | {row['perplexity']:.3f} | {row['kl']:.4f} ({row['kl_low']:.4f} to {row['kl_high']:.4f}) "
        f"| {row['top1']:.3f} ({row['top1_low']:.3f} to {row['top1_high']:.3f}) |"
        for row in frame.to_dict("records")
    ]
    count, length = sizes
    lines += ["", f"{count} windows of {length} tokens of the test part of the built-in text. Made by `{command}`.", ""]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the file; 0 when done."""
    parser = argparse.ArgumentParser(prog="python -m workbench.evaluation.tuning_figures", description=__doc__)
    parser.add_argument("--model_dir", type=Path, required=True)
    parser.add_argument("--ranges", type=Path, required=True, help="folder of a calibration with rows for tuning")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown fragment")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    sizes = (args.windows, args.length)
    command = typed("workbench.evaluation.tuning_figures", words)
    frame = measure(args.model_dir, args.ranges, sizes, args.device, to_stderr)
    write_figures(args.output, to_markdown(frame, sizes, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
