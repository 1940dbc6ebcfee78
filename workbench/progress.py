"""How a long job tells what it does: events, which a terminal, a widget or a test turns into what it shows.

A reporter may raise :class:`workbench.errors.Cancelled` to stop the job; the job then removes what it had written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One step of a long job.

    Attributes:
        task: what is being done, in the words of the user ("convert", "build: Building Engine").
        done: how much of ``total`` is finished, in ``unit``.
        total: how much there is, in ``unit``; 0 when unknown.
        unit: "B", "layers", "steps", "tokens" ...
        depth: nesting level; 0 is the job itself, deeper levels are its phases.
    """

    task: str
    done: float
    total: float
    unit: str = "steps"
    depth: int = 0


Reporter = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The reporter for a caller that does not want to know."""
