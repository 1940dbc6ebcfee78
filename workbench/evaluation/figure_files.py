"""What the commands that make figures share: progress on stderr, the command as it was typed, the files.

Computes no figure.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.progress import ProgressEvent


def to_stderr(event: ProgressEvent) -> None:
    """Progress as one line that is written over."""
    sys.stderr.write(f"\r{event.task}: {event.done:g} of {event.total:g} {event.unit}    ")
    sys.stderr.flush()


def typed(module: str, arguments: Sequence[str] | None) -> str:
    """The command line that makes the figures anew; None stands for the process's own arguments."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def write_figures(path: Path, markdown: str, content: Mapping[str, Any] | None = None) -> None:
    """Write the Markdown fragment, and its content as JSON beside it.

    Raises:
        OSError: a file cannot be written.
    """
    path.write_text(markdown, encoding="utf-8")
    if content is not None:
        path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
