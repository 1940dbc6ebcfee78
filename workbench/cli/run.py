"""``workbench run``: texts or chat messages in, texts out, from an engine or a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.sampling_flags import add_sampling_flags, check_sampling_flags, sampling_options
from workbench.cli.text_stream import before_stops, display_for
from workbench.cli.tokenizer_flags import add_trust_flag

if TYPE_CHECKING:
    from workbench.runtime.sampling import SamplingOptions
    from workbench.runtime.session import Session
    from workbench.runtime.tokenizer import Tokenizer

BACKENDS = ("auto", "cpu", "torch", "tensorrt")
# Stands in --output_npy after the end of a shorter row; no token has this id.
NO_TOKEN = -1
DEFAULT_OUTPUT_LEN = 64


def _add_flags(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--engine_dir", type=Path, metavar="ENG", help="engine folder (a checkpoint folder will do)")
    where.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="checkpoint folder")
    parser.add_argument(
        "--tokenizer_dir", type=Path, required=True, metavar="M", help="folder with tokenizer.json or tokenizer.model"
    )
    add_trust_flag(parser)
    parser.add_argument("--input_text", nargs="+", required=True, metavar="TEXT", help="one prompt or several")
    parser.add_argument("--chat", action="store_true", help="each TEXT is a message that a chat model answers")
    parser.add_argument("--system_text", metavar="TEXT", help="with --chat: what the model is told before")
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
    add_sampling_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    _check(args)

    from workbench.bench.open_session import open_session
    from workbench.runtime.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer_dir, trust_remote_code=args.trust_remote_code)
    sampling = sampling_options(args, tokenizer)
    if args.random_seed is not None and sampling.greedy:
        print(f"--random_seed {args.random_seed}: nothing is drawn; add --temperature, --top_k or --top_p")
    opened = open_session(args.engine_dir or args.checkpoint_dir, args.backend)
    try:
        print(opened.reason, flush=True)
        prompts = _prompts(args, tokenizer, opened.session)
        start = time.perf_counter()
        rows = _generate(opened.session, tokenizer, prompts, sampling, args)
        seconds = time.perf_counter() - start
    finally:
        opened.session.close()
    tokens = sum(map(len, rows))
    print(f"\n{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s with the prompt")
    if args.output_npy is not None:
        _write_npy(args.output_npy, rows)
    texts = [before_stops(tokenizer.decode(row, skip_special_tokens=True), args.stop_words) for row in rows]
    outputs = [
        {"input_text": prompt, "input_tokens": len(ids), "output_text": text, "output_ids": row}
        for prompt, ids, text, row in zip(args.input_text, prompts, texts, rows, strict=True)
    ]
    result = {"backend": opened.session.backend, "reason": opened.reason, "outputs": outputs, "seconds": seconds}
    return Outcome(result | {"sampling": asdict(sampling)})


def _check(args: argparse.Namespace) -> None:
    check_sampling_flags(args)
    if args.system_text is not None and not args.chat:
        raise UsageError("--system_text without --chat", fix="add --chat, or put the words into --input_text")


def _prompts(args: argparse.Namespace, tokenizer: Tokenizer, session: Session) -> list[list[int]]:
    """The ids of every text: as it is, or as what a user says to a chat model."""
    if not args.chat:
        return [list(map(int, tokenizer.encode(text))) for text in args.input_text]
    from workbench.runtime.chat import Message, chat_ids

    before = [] if args.system_text is None else [Message("system", args.system_text)]
    architecture = session.config.architecture
    return [chat_ids(tokenizer, [*before, Message("user", text)], architecture) for text in args.input_text]


def _generate(
    session: Session,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    sampling: SamplingOptions,
    args: argparse.Namespace,
) -> list[list[int]]:
    """Generate, and show every text as it comes."""
    from workbench.runtime.generate import generate
    from workbench.runtime.limits import check_output_len, check_prompts

    check_prompts(prompts, session.config, session.limits)
    output_len = _output_len(session, max(map(len, prompts)), args.max_output_len)
    check_output_len(max(map(len, prompts)), output_len, session.config, session.limits)
    display = display_for(tokenizer, args.input_text, args.stop_words, terminal=sys.stdout.isatty())
    ends = _end_ids(args, tokenizer, session)
    rows = generate(session, prompts, output_len, eos_token_ids=ends, on_token=display.add, sampling=sampling)
    display.close()
    return rows


def _end_ids(args: argparse.Namespace, tokenizer: Tokenizer, session: Session) -> tuple[int, ...]:
    """Ids that end a text: those asked for, else the model's own and, in a chat, those that end a turn."""
    from workbench.runtime.chat import stop_ids

    if args.end_id is None:
        return (*session.config.eos_token_ids, *(stop_ids(tokenizer) if args.chat else ()))
    for number in args.end_id:
        if not 0 <= number < session.config.vocab_size:
            raise UsageError(f"--end_id {number}", allowed=f"0 to {session.config.vocab_size - 1}, the model's ids")
    return tuple(args.end_id)


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
    summary="Generate text from an engine or a checkpoint, greedily or by sampling.",
    example="""
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --input_text "The capital of France is"
workbench run --checkpoint_dir demo/checkpoint --tokenizer_dir demo/model --input_text "One" "Two" --max_output_len 16
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --chat --input_text "Who are you?" --top_p 0.9
""",
    add_flags=_add_flags,
    run=_run,
    files=("output_npy",),
)
