"""``workbench run``: texts or chat messages in, texts out, from an engine or a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.checkpoint.output_files import output_files
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.prompts import NO_TOKEN, Given, Prompts, add_prompt_flags, encoded, given_prompts
from workbench.cli.sampling_flags import add_sampling_flags, check_sampling_flags, sampling_options
from workbench.cli.text_stream import before_stops, display_for
from workbench.cli.tokenizer_flags import add_trust_flag

if TYPE_CHECKING:
    from workbench.runtime.sampling import SamplingOptions
    from workbench.runtime.session import Session
    from workbench.runtime.tokenizer import Tokenizer

BACKENDS = ("auto", "cpu", "torch", "triton", "tensorrt")
DEFAULT_OUTPUT_LEN = 64
OUTPUTS = ("output_csv", "output_npy", "output_logits_npy")


@dataclass(frozen=True)
class _Request:
    """What is generated.

    Attributes:
        prompts: their texts and ids.
        output_len: most new tokens of each.
        ends: ids that end a text.
        stops: texts before which it ends.
        sampling: how tokens are chosen.
    """

    prompts: Prompts
    output_len: int
    ends: tuple[int, ...]
    stops: Sequence[str]
    sampling: SamplingOptions


def _add_flags(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--engine_dir", type=Path, metavar="ENG", help="engine folder (a checkpoint folder will do)")
    where.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="checkpoint folder")
    parser.add_argument(
        "--tokenizer_dir", type=Path, required=True, metavar="M", help="folder with tokenizer.json or tokenizer.model"
    )
    add_trust_flag(parser)
    add_prompt_flags(parser)
    parser.add_argument(
        "--max_output_len",
        type=int,
        metavar="N",
        help=f"new tokens at most (default: {DEFAULT_OUTPUT_LEN}, or what the limits leave)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes (default: auto)")
    files = parser.add_argument_group("files that are written, whole and at the end")
    files.add_argument("--output_csv", type=Path, metavar="FILE", help="the new token ids, a line for each prompt")
    files.add_argument(
        "--output_npy",
        type=Path,
        metavar="FILE",
        help=f"the new token ids as int64 [prompts, longest]; {NO_TOKEN} fills shorter rows",
    )
    files.add_argument(
        "--output_logits_npy",
        type=Path,
        metavar="FILE",
        help="the logits behind each new token as float32 [prompts, longest, vocab]; NaN fills shorter rows",
    )
    add_sampling_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    given = _checked(args)

    from workbench.bench.open_session import open_session
    from workbench.runtime.tokenizer import check_special_ids, load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer_dir, trust_remote_code=args.trust_remote_code)
    sampling = sampling_options(args, tokenizer)
    if args.random_seed is not None and sampling.greedy:
        print(f"--random_seed {args.random_seed}: nothing is drawn; add --temperature, --top_k or --top_p")
    opened = open_session(args.engine_dir or args.checkpoint_dir, args.backend)
    try:
        check_special_ids(tokenizer, opened.session.config.vocab_size)
        print(opened.reason, flush=True)
        prompts = encoded(given, args, tokenizer, opened.session.config)
        output_len = _output_len(opened.session, prompts, args.max_output_len)
        ends = _end_ids(args, tokenizer, opened.session)
        request = _Request(prompts, output_len, ends, args.stop_words, sampling)
        with output_files({name: getattr(args, name) for name in OUTPUTS}) as files:
            rows, seconds = _generate(opened.session, tokenizer, request, files)
            _write_ids(rows, files)
    finally:
        opened.session.close()
    tokens = sum(map(len, rows))
    print(f"\n{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s with the prompt")
    texts = [before_stops(tokenizer.decode(row, skip_special_tokens=True), args.stop_words) for row in rows]
    outputs = [
        {"input_text": prompt, "input_tokens": len(ids), "output_text": text, "output_ids": row}
        for prompt, ids, text, row in zip(prompts.texts, prompts.ids, texts, rows, strict=True)
    ]
    result = {"backend": opened.session.backend, "reason": opened.reason, "outputs": outputs, "seconds": seconds}
    return Outcome(result | {"sampling": asdict(sampling)})


def _checked(args: argparse.Namespace) -> Given:
    """The prompts, after everything that can be refused before a model is opened."""
    check_sampling_flags(args)
    return given_prompts(args)


def _generate(
    session: Session, tokenizer: Tokenizer, request: _Request, files: Mapping[str, Path]
) -> tuple[list[list[int]], float]:
    """Generate, show every text as it comes, and keep the logits where a file wants them; new ids and seconds."""
    if "output_logits_npy" not in files:
        return _stream(session, tokenizer, request)
    from workbench.cli.recorded_logits import RecordedSession

    path = files["output_logits_npy"]
    with closing(RecordedSession(session, path.parent, len(request.prompts.ids), request.output_len)) as recorded:
        rows, seconds = _stream(recorded, tokenizer, request)
        recorded.write_npy(path, list(map(len, rows)))
    return rows, seconds


def _stream(session: Session, tokenizer: Tokenizer, request: _Request) -> tuple[list[list[int]], float]:
    from workbench.runtime.generate import generate

    start = time.perf_counter()
    display = display_for(tokenizer, request.prompts.texts, request.stops, terminal=sys.stdout.isatty())
    rows = generate(
        session,
        request.prompts.ids,
        request.output_len,
        eos_token_ids=request.ends,
        on_token=display.add,
        sampling=request.sampling,
    )
    display.close()
    return rows, time.perf_counter() - start


def _end_ids(args: argparse.Namespace, tokenizer: Tokenizer, session: Session) -> tuple[int, ...]:
    """Ids that end a text: those asked for, else the model's own and, in a chat, those that end a turn."""
    from workbench.runtime.chat import stop_ids

    if args.end_id is None:
        return (*session.config.eos_token_ids, *(stop_ids(tokenizer) if args.chat else ()))
    for number in args.end_id:
        if not 0 <= number < session.config.vocab_size:
            raise UsageError(f"--end_id {number}", allowed=f"0 to {session.config.vocab_size - 1}, the model's ids")
    return tuple(args.end_id)


def _output_len(session: Session, prompts: Prompts, asked: int | None) -> int:
    """What was asked for, or the default as far as there is room; a line says where it was lowered.

    Raises:
        LimitError: a prompt or the output beyond the session's limits.
    """
    from workbench.runtime.limits import check_output_len, check_prompts, output_room

    config, limits = session.config, session.limits
    check_prompts(prompts.ids, config, limits)
    longest = max(map(len, prompts.ids))
    if asked is None:
        asked = DEFAULT_OUTPUT_LEN
        room = output_room(longest, config, limits)
        if 1 <= room < asked:
            asked = room
            print(
                f"max_output_len {room}: the default {DEFAULT_OUTPUT_LEN} lowered to what the limits leave", flush=True
            )
    check_output_len(longest, asked, config, limits)
    return asked


def _write_ids(rows: Sequence[Sequence[int]], files: Mapping[str, Path]) -> None:
    """The new ids as lines of a CSV file, or as a table, where they are wanted."""
    if "output_csv" in files:
        files["output_csv"].write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="ascii")
    if "output_npy" in files:
        import numpy as np

        table = np.full((len(rows), max(map(len, rows), default=0)), NO_TOKEN, dtype=np.int64)
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
        # Through an open file, for np.save would add .npy to a name of another ending.
        with files["output_npy"].open("wb") as file:
            np.save(file, table)


_CONVERT_FIRST = "convert the model first, workbench convert --model_dir M -o CKPT, and give --checkpoint_dir CKPT"
COMMAND = Command(
    name="run",
    summary="Generate text from an engine or a checkpoint, greedily or by sampling.",
    example="""
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --input_text "The capital of France is"
workbench run --checkpoint_dir demo/checkpoint --tokenizer_dir demo/model --input_text "One" "Two" --max_output_len 16
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --chat --input_text "Who are you?" --top_p 0.9
echo "The capital of France is" > demo/asked.txt
workbench run --engine_dir demo/engine --tokenizer_dir demo/model --input_file demo/asked.txt --output_csv demo/ids.csv
""",
    add_flags=_add_flags,
    run=_run,
    files=OUTPUTS,
    instead={
        "--model_dir": _CONVERT_FIRST,
        "--hf_model_dir": _CONVERT_FIRST,
        "--max_input_length": "prompts are not cut: shorten those that are too long",
        **dict.fromkeys(("--prompt", "--prompts"), "give it as --input_text"),
    },
)
