"""What a command writes must not be what it reads: asked before any work starts. Opens nothing but an earlier JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.cli.command import UsageError
from workbench.errors import WorkbenchError
from workbench.recipe import Recipe

# Folders that appear whole, by the names of their flags; commands check them against what they read by themselves.
_FOLDERS = {"output_dir": "--output_dir", "out": "the output folder"}
# What is read and named by words, since it may be something else than a path.
_WORDS = {"recipe__model": "--model_dir", "dataset": "--dataset"}
# Endings of files that are read of a folder: models, tokenizers, recipes, texts. Anything may be one of a dataset's.
_READ = frozenset({".json", ".jsonl", ".safetensors", ".bin", ".model", ".txt", ".yaml", ".yml", ".parquet", ".arrow"})


def require_apart(args: argparse.Namespace, outputs: Sequence[str]) -> None:
    """Refuse files to write that would take the place of what a command reads, or of what else it writes.

    Args:
        args: a command's flags.
        outputs: names of those that are files to write.

    Raises:
        UsageError: a file to write is another one, is an input, lies in the command's output folder, or would replace
            a file of a folder that is read; the JSON of an earlier run may lie in one.
    """
    written = _written(args, outputs)
    for flag, path in written.items():
        for name, words in _FOLDERS.items():
            folder: Path | None = getattr(args, name, None)
            if folder is not None and _place(folder) in (_place(path), *_place(path).parents):
                raise UsageError(f"{flag} {path} lies in {words} {folder}", fix="give a file outside of it")
    if written:
        for source, read in _inputs(args, outputs):
            for flag, path in written.items():
                _require_unread(flag, path, source, read)


def _written(args: argparse.Namespace, outputs: Sequence[str]) -> dict[str, Path]:
    """Flags and the files that they name, each another one."""
    written: dict[str, Path] = {}
    for name in outputs:
        path: Path | None = getattr(args, name)
        if path is not None:
            for other, known in written.items():
                if _place(path) == _place(known) and not _is_device(path):
                    raise _the_same(other, f"--{name}", path)
            written[f"--{name}"] = path
    return written


def _inputs(args: argparse.Namespace, outputs: Sequence[str]) -> list[tuple[str, Path]]:
    """Flags and the files or folders that they name; those that are there."""
    named = {f"--{name}": value for name, value in vars(args).items() if name not in (*outputs, *_FOLDERS)}
    given = {flag: value for flag, value in named.items() if isinstance(value, Path)}
    for name, flag in _WORDS.items():
        words = named.get(f"--{name}")
        if words:
            known = name != "dataset" or os.path.exists(words)
            given[flag] = Path(words if known else words.partition(":")[0])
    recipe = given.get("--recipe")
    if recipe is not None and recipe.is_file() and "--model_dir" not in given:
        with suppress(WorkbenchError, OSError):  # the command says what is wrong with it
            model = Recipe.load(recipe).model
            given |= {"the recipe's model": Path(model)} if model else {}
    return [(flag, path) for flag, path in given.items() if os.path.exists(path)]


def _require_unread(flag: str, path: Path, source: str, read: Path) -> None:
    if not path.is_file():
        return
    if _place(path) == _place(read):
        raise _the_same(source, flag, path)
    # Where the name stands, and what it leads to: a downloaded model's folder is made of links.
    lies_in = {*_place(path).parents, _place(path.parent), *_place(path.parent).parents}
    if not read.is_dir() or _place(read) not in lies_in:
        return
    known = source == "--dataset" or path.suffix in _READ
    if known and path.stat().st_size > 0 and not _is_record(path):
        raise UsageError(f"{flag} {path} is a file of {source} {read}", fix="give a file of its own")


def _the_same(first: str, second: str, path: Path) -> UsageError:
    return UsageError(f"{first} and {second} are both {path}", fix="give each a file of its own")


def _place(path: Path) -> Path:
    """Absolute, links followed; a link that leads in a circle stays what it is."""
    return Path(os.path.realpath(path))


def _is_device(path: Path) -> bool:
    """A terminal, a pipe, /dev/null: something that is there and no file."""
    return path.exists() and not path.is_file()


def _is_record(path: Path) -> bool:
    """Whether a command wrote this JSON file."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_bytes())
        return {"command", "version", "exit_code"} <= set(content)
    except (OSError, ValueError, TypeError):
        return False
