"""What the workbench raises when a user's input cannot be used. Knows nothing about any other module."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class WorkbenchError(ValueError):
    """A mistake that the user can mend: says what was given, what is allowed, and what to do.

    The command line prints it in one sentence and ends with exit code 2.
    """

    def __init__(self, given: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        self.given, self.allowed, self.fix = given, allowed, fix
        parts = [given, f"allowed: {allowed}" if allowed else None, fix]
        super().__init__("; ".join(part for part in parts if part))


class RecipeError(WorkbenchError):
    """A recipe that cannot be written or read."""


class CheckpointError(WorkbenchError):
    """A folder or file of weights that is not what its format promises."""


class LimitError(WorkbenchError):
    """A request beyond the limits that an engine or checkpoint was made for."""


class ResourceError(WorkbenchError):
    """A job that needs more memory than this machine has left."""


class BackendError(WorkbenchError):
    """A backend that this machine cannot run; the message names one that it can."""


class BuildError(WorkbenchError):
    """TensorRT refused a network."""


class GateError(BuildError):
    """A network that was checked and failed; the command line ends with exit code 1, as for every failed gate.

    Args:
        given: what failed.
        fix: what to do.
        details: the evidence, as plain values; ``--json`` writes it.
    """

    def __init__(self, given: str, *, fix: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(given, fix=fix)
        self.details = dict(details or {})


class Cancelled(Exception):  # noqa: N818 - a request, not an error
    """The user stopped a long job; what it had written is gone."""


def no_folder(path: Path) -> str:
    """What is wrong with a path that should be a folder's: "X does not exist", or "X is a file"."""
    return f"{path} {'is a file' if path.exists() else 'does not exist'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'dtype'?``, or an empty string when nothing known is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
