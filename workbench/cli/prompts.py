"""The prompts of ``run``: from the command line, or from a file of texts or token ids. Knows no model.

Files are those of the original ``run.py``: ``.txt`` has one text a line, ``.csv`` and ``.npy`` have one row of ids a
prompt. What it forgave is refused here: an empty line, ids that are no whole numbers, text that is not UTF-8.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.command import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from workbench.model.config import ModelConfig
    from workbench.runtime.tokenizer import Tokenizer

# Stands in a table of ids after the end of a shorter row, read and written; no token has this id.
NO_TOKEN = -1


@dataclass(frozen=True)
class Given:
    """Prompts as a person gave them, before any model is opened: texts, or else rows of ids.

    Attributes:
        texts: one a prompt.
        rows: token ids, one list a prompt.
        padded: rows come from a table, so that pads may stand at their ends.
    """

    texts: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    padded: bool = False


@dataclass(frozen=True)
class Prompts:
    """What is shown of each prompt, and its token ids."""

    texts: list[str]
    ids: list[list[int]]


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """``--input_text`` or ``--input_file``, and what a chat makes of a text."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--input_text", nargs="+", metavar="TEXT", help="one prompt or several")
    where.add_argument(
        "--input_file",
        type=Path,
        metavar="FILE",
        help=".txt: a text a line; .csv: token ids, a prompt a line; .npy: the same as a table, pads at the ends",
    )
    parser.add_argument("--chat", action="store_true", help="each text is a message that a chat model answers")
    parser.add_argument("--system_text", metavar="TEXT", help="with --chat: what the model is told before")


def given_prompts(args: argparse.Namespace) -> Given:
    """What the flags name; opens no model.

    Raises:
        UsageError: flags that contradict one another, or a file that does not hold prompts.
    """
    if args.system_text is not None and not args.chat:
        raise UsageError("--system_text without --chat", fix="add --chat, or put the words into the prompt")
    if args.input_file is None:
        return Given(texts=tuple(args.input_text))
    given = _read(args.input_file)
    if args.chat and given.rows:
        raise UsageError(
            f"--chat with the token ids of {args.input_file}",
            allowed="texts: what a user says",
            fix="give a .txt file, or leave --chat out",
        )
    return given


def encoded(given: Given, args: argparse.Namespace, tokenizer: Tokenizer, config: ModelConfig) -> Prompts:
    """The ids of every prompt: a text as it is, or as what a user says to a chat model; rows without their pads.

    Raises:
        UsageError: a row of nothing but pads.
        ChatError, CheckpointError: no chat prompt can be written.
    """
    if given.rows:
        rows = [_without_pads(row, config) if given.padded else list(row) for row in given.rows]
        for number, row in enumerate(rows, start=1):
            if not row:
                raise UsageError(f"{args.input_file}: row {number} holds pads alone", fix="give each row some ids")
        known = [[token for token in row if 0 <= token < config.vocab_size] for row in rows]
        return Prompts([tokenizer.decode(row) for row in known], rows)
    texts = list(given.texts)
    if not args.chat:
        return Prompts(texts, [list(map(int, tokenizer.encode(text))) for text in texts])
    from workbench.runtime.chat import Message, chat_ids

    before = [] if args.system_text is None else [Message("system", args.system_text)]
    chats = [[*before, Message("user", text)] for text in texts]
    return Prompts(texts, [chat_ids(tokenizer, chat, config.architecture) for chat in chats])


def _read(path: Path) -> Given:
    kinds: dict[str, Callable[[Path], Given]] = {".txt": _read_txt, ".csv": _read_csv, ".npy": _read_npy}
    kind = path.suffix.lower()
    if kind not in kinds:
        raise UsageError(f"--input_file {path}", allowed=f"a file that ends in {', '.join(kinds)}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--input_file {path} {what}", fix="give the path of a file with prompts")
    given = kinds[kind](path)
    if not given.texts and not given.rows:
        raise UsageError(f"--input_file {path} holds no prompts", fix="give it at least one")
    return given


def _lines(path: Path) -> list[str]:
    """Lines of UTF-8, whole but for their ends; empty ones at the end of the file are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--input_file {path} is no text in UTF-8 (byte {error.start})", fix="save it as UTF-8"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UsageError(
                f"{path}: line {number} is empty", allowed="a prompt in every line", fix="remove it, or fill it"
            )
    return lines


def _read_txt(path: Path) -> Given:
    return Given(texts=tuple(_lines(path)))


def _read_csv(path: Path) -> Given:
    rows = []
    for number, cells in enumerate(_cells(path), start=1):
        # Spreadsheets fill shorter rows with empty cells.
        while cells and not cells[-1].strip():
            cells.pop()
        rows.append(tuple(_id(cell, f"{path}: line {number}") for cell in cells))
        if not cells:
            raise UsageError(f"{path}: line {number} holds no ids", fix="remove it, or fill it")
    return Given(rows=tuple(rows))


def _cells(path: Path) -> Iterator[list[str]]:
    """The cells of every line.

    Raises:
        UsageError: what no table of ids has: a cell beyond csv's limit, mostly after a quote that nothing ends.
    """
    reader = csv.reader(_lines(path))
    try:
        yield from reader
    except csv.Error as error:
        raise UsageError(
            f"{path}: line {reader.line_num} is no line of a CSV file ({error})",
            allowed="token ids, whole numbers from 0, with commas between them",
            fix="remove it, or its quotes",
        ) from error


def _id(cell: str, where: str) -> int:
    text = cell.strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise UsageError(
        f"{where} holds {cell[:40]!r}",
        allowed="token ids, whole numbers from 0, with commas between them",
        fix="put texts into a .txt file, one a line",
    )


def _read_npy(path: Path) -> Given:
    import tokenize
    import zipfile

    import numpy as np

    # All that NumPy raises for files that somebody damaged: its header is Python, and an archive may stand there too.
    damaged = (ValueError, EOFError, MemoryError, OverflowError, NotImplementedError, SyntaxError)
    try:
        table: Any = np.load(path, allow_pickle=False)
    except (*damaged, tokenize.TokenError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"--input_file {path} cannot be read as a NumPy table of numbers",
            fix="save one with np.save; fill shorter rows with -1, or write a .csv file",
        ) from error
    shape, dtype = list(np.shape(table)), getattr(table, "dtype", None)
    if dtype is None or dtype.kind not in "iu" or len(shape) not in (1, 2):
        raise UsageError(
            f"--input_file {path} holds {dtype or 'several arrays'} {shape}",
            allowed="token ids: whole numbers [prompts, longest], or [tokens] for one prompt",
            fix="save np.asarray(ids, dtype=np.int64)",
        )
    rows = table.reshape(1, -1) if len(shape) == 1 else table
    if rows.size and int(rows.min()) < NO_TOKEN:
        raise UsageError(f"--input_file {path} holds {int(rows.min())}", allowed=f"ids from 0, and {NO_TOKEN} as a pad")
    return Given(rows=tuple(tuple(map(int, row)) for row in rows) if rows.size else (), padded=True)


def _without_pads(row: Sequence[int], config: ModelConfig) -> list[int]:
    """A row without what fills it up on either side: -1, or the id that the model's tables are padded with."""
    ends = (config.pad_token_id, *config.eos_token_ids)
    pads = {NO_TOKEN, next((number for number in ends if number is not None), NO_TOKEN)}
    places = [place for place, token in enumerate(row) if token not in pads]
    return list(row[places[0] : places[-1] + 1]) if places else []
