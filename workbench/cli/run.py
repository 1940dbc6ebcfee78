"""``workbench run``: texts in, greedy texts out, from an engine or a checkpoint."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.command import Command, Outcome, UsageError

if TYPE_CHECKING:
    from workbench.runtime.session import Session

BACKENDS = ("auto", "cpu", "torch", "tensorrt")
# Stands in --output_npy after the end of a shorter row; no token has this id.
NO_TOKEN = -1


def _add_flags(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--engine_dir", type=Path, metavar="ENG", help="engine folder (a checkpoint folder will do)")
    where.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="checkpoint folder")
    parser.add_argument("--tokenizer_dir", type=Path, required=True, metavar="M", help="folder with tokenizer.json")
    parser.add_argument("--input_text", nargs="+", required=True, metavar="TEXT", help="one prompt or several")
    parser.add_argument("--max_output_len", type=int, default=64, metavar="N", help="new tokens at most (default: 64)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes (default: auto)")
    parser.add_argument(
        "--output_npy",
        type=Path,
        metavar="FILE",
        help=f"write the new token ids as int64 [texts, longest]; {NO_TOKEN} fills shorter rows",
    )


class TextStream:
    """Turns one row's ids into pieces of text, holding back what may still change.

    Args:
        tokenizer: anything with ``decode(ids)``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        """The text that this id makes certain; empty inside a character of several tokens."""
        self._ids.append(token)
        text = self._decode()
        # A character cut in two shows as U+FFFD until its last token comes.
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece

    def rest(self) -> str:
        """What was held back to the end."""
        text = self._decode()
        return text[len(self._told) :] if text.startswith(self._told) else ""

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text


def _run(args: argparse.Namespace) -> Outcome:
    if args.output_npy is not None and not args.output_npy.parent.is_dir():
        raise UsageError(f"the folder of --output_npy {args.output_npy} does not exist", fix="make it first")

    from workbench.bench.open_session import open_session
    from workbench.runtime.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer_dir)
    prompts = [list(map(int, tokenizer.encode(text))) for text in args.input_text]
    opened = open_session(args.engine_dir or args.checkpoint_dir, args.backend)
    try:
        print(opened.reason, flush=True)
        start = time.perf_counter()
        rows = _generate(opened.session, tokenizer, prompts, args)
        seconds = time.perf_counter() - start
    finally:
        opened.session.close()
    tokens = sum(map(len, rows))
    print(f"\n{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s with the prompt")
    if args.output_npy is not None:
        _write_npy(args.output_npy, rows)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    outputs = [
        {"input_text": prompt, "input_tokens": len(ids), "output_text": text, "output_ids": row}
        for prompt, ids, text, row in zip(args.input_text, prompts, texts, rows, strict=True)
    ]
    result = {"backend": opened.session.backend, "reason": opened.reason, "outputs": outputs, "seconds": seconds}
    return Outcome(result)


def _generate(session: Session, tokenizer: Any, prompts: list[list[int]], args: argparse.Namespace) -> list[list[int]]:
    """Generate and show: one text as it comes, several one below the other when all are done."""
    from workbench.runtime.generate import generate

    if len(prompts) > 1:
        rows = generate(session, prompts, args.max_output_len)
        for number, (text, row) in enumerate(zip(args.input_text, rows, strict=True), start=1):
            print(f"\n[{number}] {text}\n{tokenizer.decode(row, skip_special_tokens=True)}")
        return rows
    stream = TextStream(tokenizer)
    print(f"\n{args.input_text[0]}", flush=True)
    rows = generate(
        session, prompts, args.max_output_len, on_token=lambda _, token: print(stream.add(token), end="", flush=True)
    )
    print(stream.rest())
    return rows


def _write_npy(path: Path, rows: Sequence[Sequence[int]]) -> None:
    import numpy as np

    table = np.full((len(rows), max(map(len, rows), default=0)), NO_TOKEN, dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    # Through an open file, for np.save would add .npy to a name of another ending.
    with path.open("wb") as file:
        np.save(file, table)


COMMAND = Command(
    name="run",
    summary="Generate text, greedily, from an engine or a checkpoint.",
    example="""
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --input_text "The capital of France is"
workbench run --checkpoint_dir demo/checkpoint --tokenizer_dir demo/model --input_text "One" "Two" --max_output_len 16
""",
    add_flags=_add_flags,
    run=_run,
)
