"""``workbench compare``: a checkpoint against Hugging Face, tap by tap."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.tokenizer_flags import add_trust_flag

if TYPE_CHECKING:
    from workbench.evaluation.layer_diff import LayerDiff

# The columns of the printed table; files hold every tap.
SHOWN_SITES = ("residual_pre", "attention.qkv", "attention.o", "residual_mid", "mlp.gate_up", "mlp.down")
FILES = {"csv": "every tap as CSV", "parquet": "every tap as Parquet", "png": "the plot"}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_dir", type=Path, required=True, metavar="M", help="Hugging Face checkpoint")
    parser.add_argument("--checkpoint_dir", type=Path, required=True, metavar="CKPT", help="what 'convert' made of it")
    parser.add_argument("--tokenizer_dir", type=Path, metavar="M", help="of another tokenizer (default: --model_dir)")
    add_trust_flag(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text (default: Python's language reference)")
    parser.add_argument("--windows", type=int, default=4, metavar="N", help="windows of the text (default: 4)")
    parser.add_argument("--window_len", type=int, default=256, metavar="N", help="tokens in each (default: 256)")
    parser.add_argument("--float64", action="store_true", help="run again in float64: tells a bug from rounding")
    for name, text in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {text}")


def _run(args: argparse.Namespace) -> Outcome:
    _require_endings(args)
    text = _text(args.text)

    from workbench.evaluation.compare import CompareOptions, compare_folders
    from workbench.evaluation.texts import text_sha256

    options = CompareOptions(
        text=text,
        windows=args.windows,
        length=args.window_len,
        float64=args.float64,
        tokenizer_dir=args.tokenizer_dir,
        trust_remote_code=args.trust_remote_code,
    )
    with ProgressBars() as report:
        diff = compare_folders(args.model_dir, args.checkpoint_dir, options, report)
    _print(diff)
    for name in FILES:
        if getattr(args, name) is not None:
            diff.save(getattr(args, name))
    return Outcome(
        {
            "summary": {**dataclasses.asdict(diff.summary), "same_model": bool(diff)},
            "misses": diff.summary.misses(diff.precision),
            "precision": diff.precision,
            "first_divergence": diff.first_divergence,
            "left_out": list(diff.left_out),
            "verdict": diff.verdict,
            "windows": diff.windows,
            "tokens": diff.tokens,
            "text_sha256": text_sha256(text),
            "taps": diff.frame.astype(object).where(diff.frame.notna(), None).to_dict("records"),
        },
        passed=bool(diff),
    )


def _require_endings(args: argparse.Namespace) -> None:
    """The ending says the format."""
    for name in FILES:
        path = getattr(args, name)
        if path is not None and path.suffix != f".{name}":
            raise UsageError(f"--{name} {path}", allowed=f"a file named *.{name}")


def _text(path: Path | None) -> str:
    from workbench.evaluation.texts import offline_text

    if path is None:
        return offline_text()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--text {path} cannot be read ({reason})", fix="give a text file in UTF-8") from error


def _print(diff: LayerDiff) -> None:
    grid = diff.grid("relative_l2").T.rename_axis(None, axis=1).reset_index()
    columns = ["layer", *(site for site in SHOWN_SITES if site in grid.columns)]
    reference, ours = diff.options.reference_name, diff.options.candidate_name
    print(f"relative L2 error of {ours} ({diff.precision}) against {reference}:")
    print(grid[columns].to_string(index=False, float_format=lambda value: f"{value:.1e}"))
    whole = diff.frame[diff.frame["layer"].isna()]
    print("  ".join(f"{tap} {error:.1e}" for tap, error in zip(whole["tap"], whole["relative_l2"], strict=True)))
    summary = diff.summary
    print(
        f"\nlogits over {summary.positions} positions: KL {summary.kl:.2e} nats, top-1 agreement {summary.top1:.3f}, "
        f"cosine p5 {summary.cosine_p5:.5f}, relative L2 p95 {summary.relative_l2_p95:.2e}"
    )
    print(f"perplexity: {reference} {summary.reference_perplexity:.3f}, {ours} {summary.candidate_perplexity:.3f}")
    print(_divergence(diff))
    if diff.left_out:
        print(f"not compared, since smoothing rescales them: {', '.join(diff.left_out)}")
    if diff.verdict:
        print(diff.verdict)
    misses = diff.summary.misses(diff.precision)
    print("gate 'same model': " + (f"FAILED: {'; '.join(misses)}" if misses else "passed"))


def _divergence(diff: LayerDiff) -> str:
    """The first tap beyond what the precision explains. None may be, while the logits as a whole miss the gate."""
    from workbench.evaluation.tap_error import DIVERGENCE

    limit = f"relative L2 above {DIVERGENCE[diff.precision]:g}, the limit of {diff.precision}"
    found = diff.first_divergence
    return f"first diverging tap: {found} ({limit})" if found else f"no single tap diverges ({limit})"


COMMAND = Command(
    name="compare",
    summary="Compare a checkpoint with Hugging Face layer by layer; fails when it is not the same model.",
    example="""
workbench compare --model_dir demo/model --checkpoint_dir demo/checkpoint --csv demo/taps.csv --png demo/taps.png
""",
    add_flags=_add_flags,
    run=_run,
    files=tuple(FILES),
)
