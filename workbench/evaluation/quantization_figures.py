"""The quantization figures of the documentation, made anew by one command.

    python -m workbench.evaluation.quantization_figures --model_dir demo/model --output docs/figures_quantization.md

writes a Markdown fragment, the same as JSON, and the alpha curves as a PNG beside it. ``--device cuda`` runs the plain
torch op set on a GPU; integer products are exact everywhere, so the device changes rounding only.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

import workbench
from workbench.evaluation.axis_ticks import set_ticks
from workbench.evaluation.figure_files import to_stderr, typed, write_figures
from workbench.evaluation.tradeoff import TradeoffOptions, compare_recipes
from workbench.progress import Reporter, silent
from workbench.quantization.calibration import CalibrationOptions, calibrate
from workbench.quantization.calibration_data import WindowCounts, built_in, calibration_windows
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.texts import offline_part, text_sha256, windows
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant, WeightQuantization
from workbench.runtime.tokenizer import load_tokenizer

ALPHAS = tuple(step / 10 for step in range(11))
ACTIVATIONS = {"static": "per_tensor", "per token": "per_token"}


@dataclass(frozen=True)
class QuantizationFigures:
    """All figures of one run.

    Attributes:
        modes: one row per quantization.
        alphas: one row per activation granularity and alpha.
        context: text, sizes, versions, device.
    """

    modes: pd.DataFrame
    alphas: pd.DataFrame
    context: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "modes": self.modes.to_dict("records"),
            "alphas": self.alphas.to_dict("records"),
            "context": self.context,
        }

    def to_markdown(self, command: str) -> str:
        """A fragment with two tables and what they were measured with."""
        context = self.context
        lines = [
            f"{context['windows']} windows of {context['length']} tokens of the test part of the built-in text, "
            f"ranges from {context['calibration_windows']} windows of its calibration part; against our own float32, "
            "with paired 95 % bootstrap intervals over windows. Activations and unquantized weights in "
            f"{context['dtype']}; LM head not quantized.",
            "",
            *_table(self.modes, "recipe"),
            "",
            "SmoothQuant's alpha, all four groups, weights per channel:",
            "",
            *_table(self.alphas, "recipe"),
            "",
            "Text: sha256 `" + context["text_sha256"] + "`. Versions: "
            + ", ".join(f"{name} {version}" for name, version in context["versions"].items())
            + f"; device {context['device']}. Command: `{command}`",
            "",
        ]  # fmt: skip
        return "\n".join(lines)

    def plot(self) -> Figure:
        """KL over alpha for static and per-token activations, with their intervals."""
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for (name, rows), color, marker in zip(
            self.alphas.groupby("activation", sort=False), ("#0072b2", "#d55e00"), "os", strict=True
        ):
            axes.plot(rows["alpha"], rows["kl"], color=color, marker=marker, label=f"activations {name}")
            axes.fill_between(rows["alpha"], rows["kl_low"], rows["kl_high"], color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel="alpha", ylabel="KL of the logits [nats per token]", yscale="log")
        set_ticks(axes.yaxis)
        axes.set_title("SmoothQuant W8A8 on the embedded model: KL against float32, 95 % intervals")
        axes.grid(True, alpha=0.3)
        axes.legend()
        return figure


def mode_recipes(dtype: str) -> dict[str, Recipe]:
    """Every quantization once, by the name that tables show."""

    def recipe(weights: WeightQuantization | None, kv_cache: Int8KVCache | None = None) -> Recipe:
        return Recipe(dtype=dtype, weights=weights, kv_cache=kv_cache)

    unsmoothed = {"groups": ()}
    norms_only = {"groups": ("qkv", "gate_up")}
    found = {
        dtype: recipe(None),
        "INT8 weight-only": recipe(Int8WeightOnly()),
        **{
            f"INT4 weight-only, {f'groups of {size}' if size else 'per channel'}": recipe(Int4WeightOnly(size))
            for size in (0, 128, 64, 32)
        },
        "W8A8 static, not smoothed": recipe(SmoothQuant(activation="per_tensor", **unsmoothed)),  # type: ignore[arg-type]
        "W8A8 static, qkv and gate+up smoothed": recipe(SmoothQuant(activation="per_tensor", **norms_only)),  # type: ignore[arg-type]
        "W8A8 per token, not smoothed": recipe(SmoothQuant(**unsmoothed)),  # type: ignore[arg-type]
    }
    for weight in ("per_channel", "per_tensor"):
        for name, activation in ACTIVATIONS.items():
            title = f"W8A8 SmoothQuant 0.85, activations {name}, weights {weight.replace('_', ' ')}"
            found[title] = recipe(SmoothQuant(weight=weight, activation=activation))
    for granularity in ("per_tensor", "per_head"):
        found[f"INT8 KV cache {granularity.replace('_', ' ')}"] = recipe(None, Int8KVCache(granularity))
    found["INT8 weight-only + INT8 KV cache per head"] = recipe(Int8WeightOnly(), Int8KVCache())
    found["INT4 groups of 64 + INT8 KV cache per head"] = recipe(Int4WeightOnly(64), Int8KVCache())
    found["W8A8 per token + INT8 KV cache per head"] = recipe(SmoothQuant(), Int8KVCache())
    return found


def alpha_recipes(dtype: str, alphas: Sequence[float] = ALPHAS) -> dict[str, Recipe]:
    """SmoothQuant at every alpha, with static and with per-token activations."""
    return {
        f"{name}, alpha {alpha:g}": Recipe(dtype=dtype, weights=SmoothQuant(activation=activation, alpha=alpha))
        for name, activation in ACTIVATIONS.items()
        for alpha in alphas
    }


def measure(
    model_dir: str | Path, sizes: tuple[int, int, int], device: str, dtype: str, report: Reporter = silent
) -> QuantizationFigures:
    """Calibrate, then judge every mode and every alpha.

    Args:
        model_dir: the Hugging Face folder.
        sizes: windows to judge on, tokens in each, windows to calibrate on.
        device: for calibration and judging.
        dtype: of activations.
        report: progress.
    """
    count, length, samples = sizes
    tokenizer = load_tokenizer(model_dir)
    text = offline_part("test")
    judged = windows(tokenizer, text, count, length)
    ranges = _ranges(model_dir, tokenizer, (samples, length), device, report)
    options = TradeoffOptions(device=device)
    modes = compare_recipes(model_dir, mode_recipes(dtype), judged, ranges, options, report)
    recipes = alpha_recipes(dtype)
    alphas = compare_recipes(model_dir, recipes, judged, ranges, options, report).iloc[1:]
    labels = [(name, alpha) for name in ACTIVATIONS for alpha in ALPHAS]
    alphas = alphas.assign(activation=[name for name, _ in labels], alpha=[alpha for _, alpha in labels])
    context = {
        "windows": count,
        "length": length,
        "calibration_windows": samples,
        "dtype": dtype,
        "text_sha256": text_sha256(text),
        "device": torch.cuda.get_device_name(0) if device.startswith("cuda") else platform.machine(),
        "versions": {
            "workbench": workbench.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    return QuantizationFigures(modes, alphas.reset_index(drop=True), context)


def _ranges(
    model_dir: str | Path, tokenizer: Any, sizes: tuple[int, int], device: str, report: Reporter
) -> ActivationRanges:
    data = calibration_windows(tokenizer, built_in(), WindowCounts(samples=sizes[0], length=sizes[1], tune=0))
    with tempfile.TemporaryDirectory() as folder:
        options = dataclasses.replace(CalibrationOptions(), device=device)
        return calibrate(model_dir, data, Path(folder) / "ranges", options, report=report)


def _table(frame: pd.DataFrame, name: str) -> list[str]:
    lines = [
        f"| {name} | perplexity | change | KL, nats | same first choice |",
        "|---|---|---|---|---|",
    ]
    for row in frame.to_dict("records"):
        lines.append(
            f"| {row[name]} | {row['perplexity']:.3f} "
            f"| {row['change']:+.2%} ({row['change_low']:+.2%} to {row['change_high']:+.2%}) "
            f"| {row['kl']:.4f} ({row['kl_low']:.4f} to {row['kl_high']:.4f}) "
            f"| {row['top1']:.3f} ({row['top1_low']:.3f} to {row['top1_high']:.3f}) |"
        )
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the files; 0 when done."""
    parser = argparse.ArgumentParser(prog="python -m workbench.evaluation.quantization_figures", description=__doc__)
    parser.add_argument("--model_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the Markdown fragment")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args(words)
    figures = measure(args.model_dir, (args.windows, args.length, args.samples), args.device, args.dtype, to_stderr)
    command = typed("workbench.evaluation.quantization_figures", words)
    write_figures(args.output, figures.to_markdown(command), figures.to_dict())
    figures.plot().savefig(args.output.with_suffix(".png"), dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
