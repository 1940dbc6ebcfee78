"""Where a bench keeps what it makes: calibrations and checkpoints of each model, below one cache folder.

Knows folders and names, and that no two may write the same one at once. Runs nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CheckpointError
from workbench.quantization.ranges import RANGES_FILE

CACHE_VARIABLE = "WORKBENCH_CACHE"
_FINGERPRINT_LETTERS = 16

# By folder: what this process writes. A file lock would turn away our own jobs, where waiting is enough.
_written_here: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_written_here_guard = threading.Lock()


def cache_root(given: str | Path | None = None) -> Path:
    """The cache folder: as given, else ``$WORKBENCH_CACHE``, else ``workbench`` in the user's cache folder."""
    if given is not None:
        return Path(given).expanduser().absolute()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "workbench"


@dataclass(frozen=True)
class Workspace:
    """One model's part of the cache.

    Attributes:
        root: the cache folder.
        fingerprint: the model's (:meth:`workbench.checkpoint.huggingface.HFCheckpoint.fingerprint`).
    """

    root: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        """What is kept of this model."""
        return self.root / "models" / self.fingerprint[:_FINGERPRINT_LETTERS]

    def calibration(self, name: str) -> Path:
        """The folder of a calibration, whether it exists or not."""
        return self.folder / "calibrations" / safe_name(name)

    def calibrations(self) -> list[Path]:
        """Finished calibrations, the newest last."""
        found = (self.folder / "calibrations").glob(f"*/{RANGES_FILE}")
        finished = {path.parent: _changed(path) for path in found if not path.parent.name.endswith(".partial")}
        return sorted((folder for folder in finished if finished[folder]), key=lambda folder: finished[folder])

    def checkpoint(self, name: str) -> Path:
        """The folder of a converted checkpoint, whether it exists or not."""
        return self.folder / "checkpoints" / safe_name(name)

    def checkpoints(self) -> list[Path]:
        """Folders of converted checkpoints, the one used last first."""
        found = (self.folder / "checkpoints").glob("*")
        used = {path: _changed(path) for path in found if path.is_dir() and not path.name.startswith(".")}
        return sorted((folder for folder in used if used[folder]), key=lambda folder: used[folder], reverse=True)

    def keep_newest_checkpoints(self, count: int) -> None:
        """Remove all but the checkpoints that were used last, and what stopped processes left half written.

        What somebody writes at this moment stays.
        """
        halves = {path: _target_of(path) for path in (self.folder / "checkpoints").glob(".*.partial")}
        for old, target in {**{folder: folder for folder in self.checkpoints()[count:]}, **halves}.items():
            with contextlib.suppress(CheckpointError), self.writing(target, wait=False):
                shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def touch(folder: Path) -> None:
        """Note that a folder was used now."""
        with contextlib.suppress(OSError):
            os.utime(folder, (time.time(), time.time()))

    @contextlib.contextmanager
    def writing(self, folder: Path, *, wait: bool = True) -> Iterator[None]:
        """Hold the right to write one folder; it falls back when the process ends, however it ends.

        Reading needs no such right, as folders appear whole: look first, then take it, then look again.

        Args:
            folder: what is written, such as :meth:`checkpoint` gives it.
            wait: until another thread of this process has written the same folder.

        Raises:
            CheckpointError: another process holds it, or another thread where ``wait`` is off.
        """
        with _written_here_guard:
            here = _written_here[folder.absolute()]
        if not here.acquire(blocking=wait):
            raise CheckpointError(f"another job is writing {folder}", fix="wait until it has ended")
        try:
            with self._lock_file(folder).open("a") as file:
                if not _locked(file.fileno()):
                    raise CheckpointError(
                        f"another process is writing {folder}",
                        fix="wait until it has ended, stop it, or open the model with another cache_dir",
                    )
                yield
        finally:
            here.release()

    def _lock_file(self, folder: Path) -> Path:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{folder.parent.name}-{folder.name}"


def safe_name(text: str) -> str:
    """A text as the name of a folder: letters, digits, dots, dashes; the rest becomes dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "unnamed"


def _changed(path: Path) -> float:
    """When a file or folder was changed, in seconds of the epoch; 0 where it has just been removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _target_of(partial: Path) -> Path:
    """The folder that an unfinished one (``.NAME.xyz.partial``) was to become."""
    return partial.with_name(partial.name[1:].rsplit(".", 2)[0])


def _locked(descriptor: int) -> bool:
    """Whether the file is ours alone now; systems without such locks grant it always."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
