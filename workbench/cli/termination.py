"""A polite request to end (SIGTERM), taken as Ctrl-C is: what is half done is removed. Knows no command."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Termination:
    """While entered, SIGTERM raises ``KeyboardInterrupt`` in the main thread, once.

    Attributes:
        came: whether it did.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._entered = False

    def __enter__(self) -> Termination:
        # Only the main thread may say what signals do; a command in another thread is its caller's to stop.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._stop)
            self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._entered:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _stop(self, _: int, __: FrameType | None) -> None:
        self.came = True
        # A second request must not interrupt the removal of what the first one left.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt
