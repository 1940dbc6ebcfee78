"""Every checkpoint format against Hugging Face, made anew by one command.

    python -m workbench.evaluation.format_figures --output docs/figures_formats.md

writes two Markdown tables, and the same as JSON beside them: the embedded model in every version's format; and random
models in every format, with biases and without, with every kind of grouped-query attention, in three precisions. Each
figure carries its requirement.
"""

from __future__ import annotations

import argparse
import itertools
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
from workbench.checkpoint.demo import write_demo_model
from workbench.checkpoint.hf_names import FORMATS
from workbench.checkpoint.random_model import RandomModelSpec, write_random_model
from workbench.checkpoint.unified import Checkpoint
from workbench.evaluation.figure_files import to_stderr, typed, write_figures
from workbench.evaluation.figures import PROMPTS
from workbench.evaluation.hf_reference import HFReference
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession
from workbench.runtime.tokenizer import load_tokenizer

RECIPES: dict[str, Recipe] = {
    "float32": Recipe(dtype="float32"),
    "bfloat16": Recipe(dtype="bfloat16"),
    "int8": Recipe(dtype="bfloat16", weights=Int8WeightOnly()),
}
HEADS = 12
# Key/value heads: one for all query heads; one for four of them; one for three; one for each.
KV_HEADS = (1, 3, 4, HEADS)
# Relative L2 of the logits with the same weights: computed in float32 on both sides, and in bfloat16 on both.
FLOAT32_LIMIT, BFLOAT16_LIMIT = 1e-4, 3e-2
PROMPT_LENGTHS = (3, 17, 8, 1)


@dataclass(frozen=True)
class FormatOptions:
    """What is measured.

    Attributes:
        formats: keys of :data:`workbench.checkpoint.hf_names.FORMATS`.
        kv_heads: divisors of ``HEADS``.
        greedy_tokens: how many tokens must be those of Hugging Face.
        embedded: measure the embedded model, too.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    kv_heads: tuple[int, ...] = KV_HEADS
    greedy_tokens: int = 32
    embedded: bool = True


@dataclass(frozen=True)
class FormatFigures:
    """All figures of one run.

    Attributes:
        equality: one row per format, bias, key/value heads and precision: relative L2 error of the logits against
            Hugging Face with the same rounded or multiplied out weights, in float32 and in bfloat16 arithmetic, the
            same greedy tokens or not, passed.
        embedded: one row per format of the embedded model in float32, empty where it was not measured: relative L2
            error, the same greedy tokens as Hugging Face and as in the first format or not, passed.
        context: sizes and versions.
    """

    equality: pd.DataFrame
    embedded: pd.DataFrame
    context: dict[str, Any]

    def __bool__(self) -> bool:
        """Whether every figure meets its requirement."""
        return all(bool(table["passed"].all()) for table in (self.equality, self.embedded))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        tables = {"equality": self.equality, "embedded": self.embedded}
        return {**{name: table.to_dict("records") for name, table in tables.items()}, "context": self.context}

    def to_markdown(self, command: str) -> str:
        """A fragment: the embedded model, then a line per format, bias and kind of attention of the random ones."""
        context = self.context
        return "\n".join(
            [
                *(self._embedded_lines() if len(self.embedded) else []),
                *self._random_lines(),
                "",
                f"Made by `{command}`; Python {context['python']}, torch {context['torch']}, transformers "
                f"{context['transformers']}, workbench {context['workbench']}.",
                "",
            ]
        )

    def _embedded_lines(self) -> list[str]:
        context = self.context
        return [
            "The embedded model in every format against Hugging Face's Llama in float32: relative L2 error of the "
            f"logits, required at most {FLOAT32_LIMIT:.0e}, and the {context['greedy_tokens']} greedy tokens of "
            f"{context['prompts']} prompts.",
            "",
            "| format | key/value heads | logits | tokens as Hugging Face's | tokens as the first format's | holds |",
            "|---|---|---|---|---|---|",
            *map(_embedded_line, self.embedded.to_dict("records")),
            "",
        ]

    def _random_lines(self) -> list[str]:
        models = self.equality.groupby(["format", "bias", "attention"], sort=False)
        return [
            "Random models of two layers against Hugging Face's Llama, fed with the same weights: rounded to bfloat16, "
            "or quantized to INT8 and multiplied out, where the column says so. GQA n: n key/value heads for "
            f"{HEADS} query heads. Relative L2 error of the logits, required at most {FLOAT32_LIMIT:.0e} where both "
            f"sides compute in float32 and {BFLOAT16_LIMIT:.0e} where both do in bfloat16; the "
            f"{self.context['greedy_tokens']} greedy tokens of {self.context['prompts']} prompts, computed in float32, "
            "must be identical in every precision.",
            "",
            "| format | biases | attention | float32 | bfloat16 weights | bfloat16 throughout | int8 weights | "
            "greedy tokens | holds |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(dict(zip(("format", "bias", "attention"), key, strict=True)), rows) for key, rows in models),
        ]


def format_figures(options: FormatOptions | None = None, report: Reporter = silent) -> FormatFigures:
    """Write, convert and measure a random model for every combination, and the embedded one in every format.

    Raises:
        WorkbenchError: the embedded model's package is not installed.
    """
    options = options or FormatOptions()
    with tempfile.TemporaryDirectory() as name:
        equality = _random_rows(options, Path(name), report)
        embedded = _embedded_rows(options, Path(name), report) if options.embedded else []
    context = {
        "greedy_tokens": options.greedy_tokens,
        "prompts": len(PROMPT_LENGTHS),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "workbench": workbench.__version__,
    }
    columns = ["format", "kv_heads", "relative_l2", "same_tokens", "same_in_all", "passed"]
    return FormatFigures(pd.DataFrame(equality), pd.DataFrame(embedded, columns=columns), context)


def _random_rows(options: FormatOptions, folder: Path, report: Reporter) -> list[dict[str, Any]]:
    grid = list(itertools.product(options.formats, (True, False), options.kv_heads))
    rows: list[dict[str, Any]] = []
    for done, (format, bias, kv_heads) in enumerate(grid, start=1):
        spec = _spec(format, kv_heads, bias=bias)
        write_random_model(folder / "model", spec, force=True)
        rows += _model_rows(spec, folder, options.greedy_tokens)
        report(ProgressEvent("random models", done, len(grid), "models"))
    return rows


def _embedded_rows(options: FormatOptions, folder: Path, report: Reporter) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: list[list[int]] | None = None
    for done, format in enumerate(options.formats, start=1):
        write_demo_model(folder / format, format=format)
        tokenizer = load_tokenizer(folder / format)
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        session, reference = _sides(
            convert(folder / format, RECIPES["float32"], folder / "c", force=True), torch.float32
        )
        error = _relative_l2(session, reference, torch.tensor([max(prompts, key=len)]))
        said = generate(session, prompts, options.greedy_tokens)
        first = said if first is None else first
        same = {"same_tokens": said == reference.generate(prompts, options.greedy_tokens), "same_in_all": said == first}
        passed = error <= FLOAT32_LIMIT and all(same.values())
        kv_heads = session.config.num_kv_heads
        rows.append({"format": format, "kv_heads": kv_heads, "relative_l2": error, **same, "passed": passed})
        report(ProgressEvent("embedded model", done, len(options.formats), "formats"))
    return rows


def _spec(format: str, kv_heads: int, *, bias: bool) -> RandomModelSpec:
    return RandomModelSpec(hidden=48, heads=HEADS, kv_heads=kv_heads, intermediate=80, bias=bias, format=format)


def _model_rows(spec: RandomModelSpec, folder: Path, greedy_tokens: int) -> list[dict[str, Any]]:
    """One row per precision of the model in ``folder / "model"``."""
    ids = torch.randint(3, spec.vocab, (2, 64), generator=torch.Generator().manual_seed(0))
    attention = "MHA" if spec.kv_heads == spec.heads else f"GQA {spec.kv_heads}"
    rows = []
    for precision, recipe in RECIPES.items():
        checkpoint = convert(folder / "model", recipe, folder / "checkpoint", force=True)
        names = {"format": spec.format, "bias": spec.bias, "attention": attention, "precision": precision}
        rows.append(names | _equality(checkpoint, ids, greedy_tokens))
    return rows


def _equality(checkpoint: Checkpoint, ids: Tensor, greedy_tokens: int) -> dict[str, Any]:
    prompts = [ids[0, :length].tolist() for length in PROMPT_LENGTHS]
    session, reference = _sides(checkpoint, torch.float32)
    error = _relative_l2(session, reference, ids)
    same = generate(session, prompts, greedy_tokens) == reference.generate(prompts, greedy_tokens)
    half = None
    if checkpoint.recipe.dtype == "bfloat16":
        half = _relative_l2(*_sides(checkpoint, torch.bfloat16), ids)
    passed = error <= FLOAT32_LIMIT and same and (half is None or half <= BFLOAT16_LIMIT)
    return {"relative_l2": error, "relative_l2_bfloat16": half, "same_tokens": same, "passed": passed}


def _sides(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[TorchSession, HFReference]:
    """Ours and Hugging Face's model with a checkpoint's weights as they are stored, computing in ``dtype``."""
    ours = TorchSession(checkpoint.config, checkpoint.weights, SessionOptions(dtype))
    return ours, HFReference.from_weights(checkpoint.config, checkpoint.weights, dtype)


def _relative_l2(session: TorchSession, reference: HFReference, ids: Tensor) -> float:
    theirs, ours = reference.logits(ids).double(), session.logits(ids).double()
    return float((ours - theirs).norm() / theirs.norm())


def _embedded_line(row: dict[Any, Any]) -> str:
    identical = {True: "identical", False: "differ"}
    cells = [
        _version(row["format"]),
        str(row["kv_heads"]),
        f"{row['relative_l2']:.1e}",
        identical[row["same_tokens"]],
        identical[row["same_in_all"]],
        _holds(row["passed"]),
    ]
    return f"| {' | '.join(cells)} |"


def _version(format: str) -> str:
    return FORMATS[format].architecture.removesuffix("ForCausalLM")


def _holds(passed: bool) -> str:
    return "yes" if passed else "NO"


def _line(names: dict[str, Any], rows: pd.DataFrame) -> str:
    by_precision = rows.set_index("precision")
    errors = by_precision["relative_l2"]
    cells = [
        _version(names["format"]),
        "yes" if names["bias"] else "no",
        names["attention"],
        f"{errors['float32']:.1e}",
        f"{errors['bfloat16']:.1e}",
        f"{by_precision['relative_l2_bfloat16']['bfloat16']:.1e}",
        f"{errors['int8']:.1e}",
        "identical" if rows["same_tokens"].all() else "differ",
        _holds(bool(rows["passed"].all())),
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and their JSON; 1 when a figure misses its requirement."""
    parser = argparse.ArgumentParser(prog="python -m workbench.evaluation.format_figures", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the Markdown fragment; JSON is written beside it")
    args = parser.parse_args(arguments)
    figures = format_figures(report=to_stderr)
    command = typed("workbench.evaluation.format_figures", arguments)
    write_figures(args.output, figures.to_markdown(command), figures.to_dict())
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main())
