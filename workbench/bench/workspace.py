"""Where a bench keeps what it makes: calibrations and checkpoints of each model, below one cache folder.

Knows folders and names, and that two processes must not write the same one. Runs nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CheckpointError
from workbench.quantization.ranges import RANGES_FILE

CACHE_VARIABLE = "WORKBENCH_CACHE"
_FINGERPRINT_LETTERS = 16


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
        finished = [path.parent for path in found if not path.parent.name.endswith(".partial")]
        return sorted(finished, key=lambda folder: (folder / RANGES_FILE).stat().st_mtime)

    def checkpoint(self, name: str) -> Path:
        """The folder of a converted checkpoint, whether it exists or not."""
        return self.folder / "checkpoints" / safe_name(name)

    def checkpoints(self) -> list[Path]:
        """Folders of converted checkpoints, the one used last first; one may be half written."""
        folders = [path for path in (self.folder / "checkpoints").glob("*") if path.is_dir()]
        return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)

    def keep_newest_checkpoints(self, count: int) -> None:
        """Remove all but the checkpoints that were used last."""
        for old in self.checkpoints()[count:]:
            shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def touch(folder: Path) -> None:
        """Note that a folder was used now."""
        with contextlib.suppress(OSError):
            os.utime(folder, (time.time(), time.time()))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write; it falls back when the process ends, however it ends.

        Raises:
            CheckpointError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            if not _locked(file.fileno()):
                raise CheckpointError(
                    f"another process is writing to {self.folder}",
                    fix="wait until it has ended, stop it, or open the model with another cache_dir",
                )
            yield


def safe_name(text: str) -> str:
    """A text as the name of a folder: letters, digits, dots, dashes; the rest becomes dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "unnamed"


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
