"""Standard output and error that outlive their readers. Knows nothing about what is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class PatientStream:
    """A stream that drops what nobody reads any more, so that the work behind it goes on.

    The reader of a pipe may leave before a command is done (``| head``); files and results are still wanted then.

    Args:
        stream: what is written to; everything but ``write`` and ``flush`` is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        # By descriptor: what is still buffered, and the interpreter's own flush at its end, go there too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def patient_streams() -> Iterator[None]:
    """Both standard streams as :class:`PatientStream`; one that was closed from the start takes everything too."""
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None:  # the type says never; `workbench ... >&-` says so
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect(cast("TextIO", PatientStream(stream))))
        yield
