"""A forward pass that can be stopped at every tap: the way to compare two models without keeping either's taps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from torch import Tensor

TapSink = Callable[[str, Tensor], None]


class HasTaps(Protocol):
    """A model that scores every position and offers its taps on the way (:mod:`workbench.model.taps`)."""

    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """``[batch, seq]`` int64 -> ``[batch, seq, vocab]`` float32."""
        ...


class _Stopped(BaseException):
    """Raised inside the pass when nobody wants its further taps."""


class TapStream:
    """One forward pass in a thread of its own, which waits at each tap until it is asked for the next.

    The two models never compute at the same time, so they do not compete for cores, and only the taps that one is
    ahead of the other are in memory: a single one when both meet their taps in the same order.
    """

    def __init__(self, model: HasTaps, ids: Tensor) -> None:
        self._model, self._ids = model, ids
        self._ahead: dict[str, Tensor] = {}
        self._taps: queue.SimpleQueue[tuple[str, Tensor] | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._stop = self._finished = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tap-stream", daemon=True)

    def take(self, name: str) -> Tensor | None:
        """The tap called ``name``, or None if the pass has none. Each tap can be taken once.

        Raises:
            Exception: whatever the pass raised.
        """
        while name not in self._ahead and not self._finished:
            self._wanted.release()
            item = self._taps.get()
            if item is None:
                self._finished = True
                if self._error is not None:
                    raise self._error
            else:
                self._ahead[item[0]] = item[1]
        return self._ahead.pop(name, None)

    def __enter__(self) -> TapStream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._wanted.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._wait()
            self._model.logits(self._ids, self._offer)
        except _Stopped:
            pass
        except BaseException as error:  # handed to the thread that asks
            self._error = error
        self._taps.put(None)

    def _offer(self, name: str, tensor: Tensor) -> None:
        self._taps.put((name, tensor))
        self._wait()

    def _wait(self) -> None:
        self._wanted.acquire()
        if self._stop:
            raise _Stopped
