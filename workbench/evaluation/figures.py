"""The accuracy figures of the documentation, made anew by one command.

    python -m workbench.evaluation.figures --model_dir demo/model --output docs/figures_accuracy.md

writes a Markdown fragment, and the same as JSON beside it. Each figure carries its requirement, and whether it holds.
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
import transformers
from torch import Tensor

import workbench
from workbench.checkpoint.random_model import RandomModelSpec, write_random_model
from workbench.evaluation.figure_files import to_stderr, typed, write_figures
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.perplexity import Perplexity, paired_change, perplexity
from workbench.evaluation.texts import offline_text, text_sha256, windows
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe
from workbench.runtime.generate import generate
from workbench.runtime.session import TorchSession
from workbench.runtime.tokenizer import load_tokenizer

RECIPES: dict[str, Recipe] = {
    "float32": Recipe(dtype="float32"),
    "bfloat16": Recipe(dtype="bfloat16"),
    "float16": Recipe(dtype="float16"),
    "int8 weights, bfloat16": Recipe(dtype="bfloat16", weights=Int8WeightOnly()),
    "int8 weights, float16": Recipe(dtype="float16", weights=Int8WeightOnly()),
}
# The most that perplexity may change against our own float32.
PERPLEXITY_LIMIT = {"float32": 0.0, "bfloat16": 0.005, "float16": 0.005}
PERPLEXITY_LIMIT_INT8 = 0.01
LOGITS_LIMIT = 1e-4
PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "In the beginning of the twentieth century, physicists believed that",
)
RANDOM_MODELS: dict[str, RandomModelSpec] = {
    "bias, MHA": RandomModelSpec(bias=True),
    "no bias, MHA": RandomModelSpec(bias=False),
    "bias, GQA": RandomModelSpec(bias=True, kv_heads=2),
    "no bias, GQA": RandomModelSpec(bias=False, kv_heads=2),
}


@dataclass(frozen=True)
class FigureOptions:
    """What is measured.

    Attributes:
        windows, length: of the built-in text, for the perplexities.
        greedy_tokens: how many tokens must be those of Hugging Face.
        modes: keys of ``RECIPES``; "float32" is always measured, since the others are judged by it.
    """

    windows: int = 30
    length: int = 512
    greedy_tokens: int = 32
    modes: tuple[str, ...] = tuple(RECIPES)


@dataclass(frozen=True)
class AccuracyFigures:
    """All figures of one run.

    Attributes:
        perplexities: one row per mode: perplexity, change against float32 with its interval, limit, passed.
        equality: one row per model: relative L2 error of the float32 logits against Hugging Face, the same greedy
            tokens or not, passed.
        context: the text's hash, sizes, versions.
    """

    perplexities: pd.DataFrame
    equality: pd.DataFrame
    context: dict[str, Any]

    def __bool__(self) -> bool:
        """Whether every figure meets its requirement."""
        return bool(self.perplexities["passed"].all() and self.equality["passed"].all())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        tables = {"perplexities": self.perplexities, "equality": self.equality}
        return {**{name: table.to_dict("records") for name, table in tables.items()}, "context": self.context}

    def to_markdown(self, command: str) -> str:
        """A fragment with two tables, and what they were measured with."""
        context = self.context
        return "\n".join(
            [
                f"Perplexity of {context['windows']} windows of {context['length']} tokens of the built-in text "
                "(cpu op set); the change is against our float32, with a paired 95 % bootstrap interval over windows.",
                "",
                "| mode | perplexity | change | interval | required | holds |",
                "|---|---|---|---|---|---|",
                *map(_perplexity_line, self.perplexities.to_dict("records")),
                "",
                f"Float32 against Hugging Face (eager, float32): relative L2 error of the logits, and the "
                f"{context['greedy_tokens']} greedy tokens of a batch of {context['prompts']} prompts of different "
                "lengths.",
                "",
                "| model | logits, relative L2 | required | greedy tokens | holds |",
                "|---|---|---|---|---|",
                *map(_equality_line, self.equality.to_dict("records")),
                "",
                f"Made by `{command}`; text SHA-256 `{context['text_sha256']}`; Python {context['python']}, "
                f"torch {context['torch']}, transformers {context['transformers']}, workbench {context['workbench']}.",
                "",
            ]
        )


def accuracy_figures(
    model_dir: str | Path, options: FigureOptions | None = None, report: Reporter = silent
) -> AccuracyFigures:
    """Convert the model in every mode and measure it.

    Raises:
        CheckpointError: the model's folder cannot be read.
    """
    options = options or FigureOptions()
    tokenizer = load_tokenizer(model_dir)
    text = offline_text()
    ids = windows(tokenizer, text, options.windows, options.length)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    context = {
        "windows": options.windows,
        "length": options.length,
        "prompts": len(PROMPTS),
        "greedy_tokens": options.greedy_tokens,
        "text_sha256": text_sha256(text),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "workbench": workbench.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        perplexities = _perplexities(Path(model_dir), ids, options, scratch, report)
        inputs = _Inputs(ids[:2], prompts, options.greedy_tokens)
        equality = [_equality("embedded model", Path(model_dir), inputs, scratch)]
        for kind, spec in RANDOM_MODELS.items():
            write_random_model(scratch / "random model", spec, force=True)
            inputs = _random_inputs(spec, options.greedy_tokens)
            equality.append(_equality(f"random, {kind}", scratch / "random model", inputs, scratch))
            report(ProgressEvent("random models", len(equality) - 1, len(RANDOM_MODELS), "models"))
    return AccuracyFigures(perplexities, pd.DataFrame(equality), context)


@dataclass(frozen=True)
class _Inputs:
    """What one model is compared with Hugging Face on: windows ``[count, length]``, prompts, tokens to generate."""

    ids: Tensor
    prompts: list[list[int]]
    tokens: int


def _perplexities(
    model_dir: Path, ids: Tensor, options: FigureOptions, scratch: Path, report: Reporter
) -> pd.DataFrame:
    measured: dict[str, Perplexity] = {}
    for mode in dict.fromkeys(["float32", *options.modes]):
        session = _session(model_dir, RECIPES[mode], scratch)
        measured[mode] = perplexity(session, ids, _named(report, f"perplexity, {mode}"))
        session.close()
    reference = HFReference.open(model_dir)
    ours = measured["float32"]
    rows = [_perplexity_row("Hugging Face float32", perplexity(_Logits(reference), ids, report), ours)]
    rows += [_perplexity_row(mode, result, ours) for mode, result in measured.items()]
    return pd.DataFrame(rows)


def _perplexity_row(mode: str, result: Perplexity, reference: Perplexity) -> dict[str, Any]:
    change = paired_change(result, reference)
    limit = PERPLEXITY_LIMIT.get(mode, PERPLEXITY_LIMIT_INT8 if mode.startswith("int8") else LOGITS_LIMIT)
    return {
        "mode": mode,
        "perplexity": result.value,
        **{f"change_{name}": value for name, value in dataclasses.asdict(change).items()},
        "limit": limit,
        "passed": abs(change.relative) <= limit,
    }


def _equality(name: str, folder: Path, inputs: _Inputs, scratch: Path) -> dict[str, Any]:
    """Float32 logits and greedy tokens against Hugging Face."""
    session = _session(folder, RECIPES["float32"], scratch)
    reference = HFReference.open(folder)
    theirs, ours = reference.logits(inputs.ids).double(), session.logits(inputs.ids).double()
    error = float((ours - theirs).norm() / theirs.norm())
    same = generate(session, inputs.prompts, inputs.tokens) == reference.generate(inputs.prompts, inputs.tokens)
    return {
        "model": name,
        "relative_l2": error,
        "limit": LOGITS_LIMIT,
        "same_tokens": same,
        "passed": error <= LOGITS_LIMIT and same,
    }


def _random_inputs(spec: RandomModelSpec, tokens: int) -> _Inputs:
    """Windows of 64 and four prompts of different lengths for a random model."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, spec.vocab, (2, 64), generator=generator)
    return _Inputs(ids, [ids[0, :length].tolist() for length in (3, 17, 8, 1)], tokens)


def _session(model_dir: Path, recipe: Recipe, scratch: Path) -> TorchSession:
    return TorchSession.open(convert(model_dir, recipe, scratch / "checkpoint", force=True))


class _Logits:
    """A reference without its taps, as :func:`perplexity` wants it."""

    def __init__(self, reference: HFReference) -> None:
        self.reference = reference

    def logits(self, ids: Tensor) -> Tensor:
        return self.reference.logits(ids)


def _named(report: Reporter, task: str) -> Reporter:
    return lambda event: report(dataclasses.replace(event, task=task))


def _perplexity_line(row: dict[Any, Any]) -> str:
    change = f"{row['change_relative']:+.3%} | {row['change_low']:+.3%} to {row['change_high']:+.3%}"
    required = f"within {row['limit']:.2%}" if row["limit"] else ""
    return f"| {row['mode']} | {row['perplexity']:.4f} | {change} | {required} | {_holds(row)} |"


def _equality_line(row: dict[Any, Any]) -> str:
    tokens = "identical" if row["same_tokens"] else "differ"
    return f"| {row['model']} | {row['relative_l2']:.1e} | at most {row['limit']:.0e} | {tokens} | {_holds(row)} |"


def _holds(row: dict[Any, Any]) -> str:
    return "yes" if row["passed"] else "NO"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the fragment and its JSON; 1 when a figure misses its requirement."""
    parser = argparse.ArgumentParser(prog="python -m workbench.evaluation.figures", description=main.__doc__)
    parser.add_argument("--model_dir", type=Path, required=True, help="the demo model's folder")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown fragment; JSON is written beside it")
    parser.add_argument("--windows", type=int, default=FigureOptions.windows)
    parser.add_argument("--length", type=int, default=FigureOptions.length)
    args = parser.parse_args(arguments)
    figures = accuracy_figures(args.model_dir, FigureOptions(args.windows, args.length), to_stderr)
    command = typed("workbench.evaluation.figures", arguments)
    write_figures(args.output, figures.to_markdown(command), figures.to_dict())
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main())
