"""A folder that appears whole or not at all. Knows nothing about what is written into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import CheckpointError


@contextmanager
def output_folder(target: Path, *, force: bool, needed_bytes: int) -> Iterator[Path]:
    """Yield a new folder beside ``target``; it takes ``target``'s name when the block ends well.

    On any exception, Ctrl-C included, it is removed and an existing ``target`` is left as it was.

    Args:
        target: where the result shall stand.
        force: replace an existing ``target``; only a folder that is empty or holds a ``config.json`` is replaced.
        needed_bytes: what the block will write.

    Raises:
        CheckpointError: ``target`` exists and may not be replaced, or the disk has too little room.
    """
    target = Path(target).absolute()
    check_output(target, force=force, needed_bytes=needed_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        _put_in_place(folder, target, force=force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(target: Path, *, force: bool, needed_bytes: int) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        CheckpointError: as :func:`output_folder`.
    """
    _check_absent(target, force=force)
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} cannot be written to", fix="give an output in a folder of yours")
    free_bytes = shutil.disk_usage(parent).free
    if needed_bytes > free_bytes:
        raise CheckpointError(
            f"{target} needs {needed_bytes:,} bytes and the disk has {free_bytes:,} free",
            fix="make room, or give an output on another disk",
        )


def _check_absent(target: Path, *, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise CheckpointError(f"output {target} exists", fix="add --force to replace it, or give another output")
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not (target / "config.json").exists()):
        raise CheckpointError(
            f"output {target} exists and is no folder of a checkpoint, model or engine",
            fix="remove it by hand, or give another output",
        )


def _put_in_place(folder: Path, target: Path, *, force: bool) -> None:
    _check_absent(target, force=force)
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
