"""``workbench run``: texts in, greedy texts out, from an engine or a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.command import Command, Outcome
from workbench.cli.text_stream import display_for

if TYPE_CHECKING:
    from workbench.runtime.session import Session

BACKENDS = ("auto", "cpu", "torch", "tensorrt")
# Stands in --output_npy after the end of a shorter row; no token has this id.
NO_TOKEN = -1
DEFAULT_OUTPUT_LEN = 64


def _add_flags(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--engine_dir", type=Path, metavar="ENG", help="engine folder (a checkpoint folder will do)")
    where.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="checkpoint folder")
    parser.add_argument("--tokenizer_dir", type=Path, required=True, metavar="M", help="folder with tokenizer.json")
    parser.add_argument("--input_text", nargs="+", required=True, metavar="TEXT", help="one prompt or several")
    parser.add_argument(
        "--max_output_len",
        type=int,
        metavar="N",
        help=f"new tokens at most (default: {DEFAULT_OUTPUT_LEN}, or what the limits leave)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes (default: auto)")
    parser.add_argument(
        "--output_npy",
        type=Path,
        metavar="FILE",
        help=f"write the new token ids as int64 [texts, longest]; {NO_TOKEN} fills shorter rows",
    )


def _run(args: argparse.Namespace) -> Outcome:
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
    """Generate, and show every text as it comes."""
    from workbench.runtime.generate import generate
    from workbench.runtime.limits import check_output_len, check_prompts

    check_prompts(prompts, session.config, session.limits)
    output_len = _output_len(session, max(map(len, prompts)), args.max_output_len)
    check_output_len(max(map(len, prompts)), output_len, session.config, session.limits)
    display = display_for(tokenizer, args.input_text, terminal=sys.stdout.isatty())
    rows = generate(session, prompts, output_len, on_token=display.add)
    display.close()
    return rows


def _output_len(session: Session, longest_prompt: int, asked: int | None) -> int:
    """What was asked for, or the default as far as there is room; a line says where it was lowered."""
    from workbench.runtime.limits import output_room

    if asked is not None:
        return asked
    room = output_room(longest_prompt, session.config, session.limits)
    if not 1 <= room < DEFAULT_OUTPUT_LEN:
        return DEFAULT_OUTPUT_LEN
    print(f"max_output_len {room}: the default {DEFAULT_OUTPUT_LEN} lowered to what the limits leave", flush=True)
    return room


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
    files=("output_npy",),
)
