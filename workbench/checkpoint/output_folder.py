"""A folder that appears whole or not at all. Knows nothing about what is written into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import CheckpointError

CHECKPOINT, ENGINE, MODEL = "checkpoint", "engine", "model"
DEMO_MARKER, RANDOM_MARKER = "demo_model.json", "random_model.json"
MODEL_MARKERS = (DEMO_MARKER, RANDOM_MARKER)


@contextmanager
def output_folder(target: Path, *, force: bool, needed_bytes: int, replaces: str = CHECKPOINT) -> Iterator[Path]:
    """Yield a new folder beside ``target``; it takes ``target``'s name when the block ends well.

    On any exception, Ctrl-C included, it is removed and an existing ``target`` is left as it was.

    Args:
        target: where the result shall stand.
        force: replace an existing ``target``; only an empty folder, or one of the kind ``replaces``, is replaced.
        needed_bytes: what the block will write.
        replaces: the kind of folder that the caller itself writes: "checkpoint", "engine" or "model" (made by us).

    Raises:
        CheckpointError: ``target`` exists and may not be replaced, or the disk has too little room.
    """
    target = Path(target).absolute()
    check_output(target, force=force, needed_bytes=needed_bytes, replaces=replaces)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        _put_in_place(folder, target, force=force, replaces=replaces)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(target: Path, *, force: bool, needed_bytes: int, replaces: str = CHECKPOINT) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        CheckpointError: as :func:`output_folder`.
    """
    _check_absent(target, force=force, replaces=replaces)
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} cannot be written to", fix="give an output in a folder of yours")
    free_bytes = shutil.disk_usage(parent).free
    if needed_bytes > free_bytes:
        raise CheckpointError(
            f"{target} needs {needed_bytes:,} bytes and the disk has {free_bytes:,} free",
            fix="make room, or give an output on another disk",
        )


def check_apart(source: Path | None, out: Path) -> None:
    """Refuse an output that would take the place of what it is made from; a folder of its own inside that is none.

    Args:
        source: the folder or file that is read; None where there is none.
        out: to write.

    Raises:
        CheckpointError: ``out`` is ``source``, a file in it, or a folder that it lies in.
    """
    if source is None:
        return
    place, read = out.resolve(), source.resolve()
    if place == read:
        raise CheckpointError(f"output {out} is what it would be made from", fix="give another output")
    if read in place.parents and place.is_file():
        raise CheckpointError(
            f"output {out} is a file of {source}, which it would be made from", fix="give another output"
        )
    if place in read.parents:
        raise CheckpointError(f"output {out} holds {source}, which it would be made from", fix="give another output")


def not_ours(target: Path, what: str) -> CheckpointError:
    """An output that no ``--force`` replaces.

    Args:
        target: is there.
        what: such outputs of the command at hand, in words.
    """
    if target.is_symlink():
        return CheckpointError(f"output {target} is a link", fix="give the folder that it leads to, or another output")
    return CheckpointError(
        f"output {target} exists and is no {what} that this command wrote",
        fix="give another output, or remove it by hand",
    )


def folder_kind(folder: Path) -> str | None:
    """What a folder of ours is: "checkpoint", "engine" or "model"; None for anything else, a downloaded model too."""
    if any((folder / marker).is_file() for marker in MODEL_MARKERS):
        return MODEL
    try:
        section = json.loads((folder / "config.json").read_text(encoding="utf-8"))["workbench"]
        return str(section["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_absent(target: Path, *, force: bool, replaces: str) -> None:
    if not os.path.lexists(target):
        return
    ours = (
        target.is_dir() and not target.is_symlink() and (not any(target.iterdir()) or folder_kind(target) == replaces)
    )
    if not ours:  # before --force is spoken of, which would not help
        raise not_ours(target, replaces)
    if not force:
        raise CheckpointError(f"output {target} exists", fix="add --force to replace it, or give another output")


def _put_in_place(folder: Path, target: Path, *, force: bool, replaces: str) -> None:
    _check_absent(target, force=force, replaces=replaces)
    if not target.exists():
        folder.rename(target)
        return
    old = folder.with_suffix(".replaced")
    target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
