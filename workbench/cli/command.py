"""What every command is: a parser, one function, an outcome. Knows no command by name."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from workbench.checkpoint.output_files import output_files
from workbench.errors import WorkbenchError, nearest

DONE, GATE_FAILED, BAD_INPUT, CANCELLED, TERMINATED = 0, 1, 2, 130, 143
_FLAG = re.compile(r"--[A-Za-z][A-Za-z0-9_-]*")


class UsageError(WorkbenchError):
    """A command line that does not parse."""


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Attributes:
        result: what ``--json`` writes under "result"; plain values only.
        passed: False when the command's gate failed (exit code 1).
    """

    result: dict[str, Any] = field(default_factory=dict)
    passed: bool = True


class Unfinished(Exception):  # noqa: N818 - says what was found before an error
    """A command that failed after it had come to results; ``--json`` writes them beside the error.

    Args:
        cause: the error that ended it.
        result: as :attr:`Outcome.result`.
    """

    def __init__(self, cause: WorkbenchError | OSError, result: dict[str, Any]) -> None:
        super().__init__(str(cause))
        self.cause, self.result = cause, result


@contextmanager
def gpu_memory_told() -> Iterator[None]:
    """A GPU that has no memory left becomes a mistake that a person can mend.

    Raises:
        LimitError: in the place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "torch" not in sys.modules:  # it was not torch, which is never imported just to ask
            raise
        from workbench.evaluation.memory import out_of_gpu_memory

        told = out_of_gpu_memory(error)
        if told is None:
            raise
        raise told from error


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process, and takes no shortened flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"see {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """One command of ``workbench``.

    Attributes:
        name: as typed.
        summary: one line for ``workbench --help``.
        example: command lines for the end of its own ``--help``.
        add_flags: adds the command's own flags.
        run: does it; may raise :class:`Unfinished`.
        files: flags, without dashes, that name a file to write; such paths are checked before ``run``.
        instead: flags of other commands that people try on this one -> what to do.
    """

    name: str
    summary: str
    example: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Outcome]
    files: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)

    def parser(self) -> Parser:
        """The command's parser: its own flags, then those that every command has."""
        parser = Parser(
            prog=f"workbench {self.name}",
            description=self.summary,
            epilog="example:\n" + textwrap.indent(self.example.strip(), "  "),
        )
        self.add_flags(parser)
        group = parser.add_argument_group("of every command")
        group.add_argument("--json", type=Path, metavar="PATH", help="also write the outcome as JSON (docs/cli.md)")
        group.add_argument("--debug", action="store_true", help="on an error show where in the program it was raised")
        return parser

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the words after the command's name; dashes and underscores in flags mean the same.

        Raises:
            UsageError: an unknown flag (the nearest known one is suggested), a missing or an unreadable value.
        """
        parser = self.parser()
        words = underscored(words)
        known = [flag for action in parser._actions for flag in action.option_strings]
        for word in words[: words.index("--") if "--" in words else None]:
            # Before argparse, which would rather complain of what is missing than of what is misspelt.
            flag = word.partition("=")[0]
            if _FLAG.fullmatch(flag) and flag not in known:
                raise UsageError(
                    f"{flag} is no flag",
                    fix=self.instead.get(flag) or nearest(flag, known) or f"see {parser.prog} --help",
                )
        return parser.parse_args(words)


def underscored(words: Sequence[str]) -> list[str]:
    """The same words with ``--tp-size`` written ``--tp_size``; values, and words after ``--``, stay as they are."""
    result: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            return [*result, *words[place:]]
        name, equals, value = word.partition("=")
        if _FLAG.fullmatch(name):
            word = "--" + name[2:].replace("-", "_") + equals + value
        result.append(word)
    return result


def require_writable(flag: str, path: Path | None) -> None:
    """Refuse the path of an output file at once, not after minutes of work.

    Raises:
        UsageError: it is a folder, lies in none, leads nowhere, or may not be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder", fix="give the path of a file")
    if os.path.islink(os.path.realpath(path)):
        raise UsageError(f"{flag} {path} is a link that leads in a circle", fix="give the path of a file")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist", fix="make it, or give another path")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path} may not be written", fix="give a path of yours")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, whole or not at all; numbers that JSON lacks (NaN, infinities) become null.

    Raises:
        UsageError: the file cannot be written.
    """
    text = json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"
    try:
        with output_files({"json": path}) as drafts:
            drafts["json"].write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {path} cannot be written ({error.strerror})", fix="give another path") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar, without importing either
        return _plain(value.item())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
