"""TensorRT's nested build phases as progress events, and the builder in a thread that can be cancelled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from workbench.progress import ProgressEvent, Reporter


def make_monitor(trt: Any, emit: Callable[[ProgressEvent], None], cancelled: threading.Event) -> Any:
    """An ``IProgressMonitor`` that emits an event per step and cancels when the flag is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._open: dict[str, tuple[int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self._open[parent_phase][1] + 1 if parent_phase in self._open else 0
            self._open[phase_name] = (num_steps, depth)
            emit(ProgressEvent(f"build: {phase_name}", 0, num_steps, depth=depth))

        def step_complete(self, phase_name: str, step: int) -> bool:
            total, depth = self._open.get(phase_name, (0, 0))
            emit(ProgressEvent(f"build: {phase_name}", step + 1, total, depth=depth))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            total, depth = self._open.pop(phase_name, (0, 0))
            emit(ProgressEvent(f"build: {phase_name}", total, total, depth=depth))

    return Monitor()


class BuilderThread:
    """Runs the builder beside the caller, which reports progress and stays open to Ctrl-C.

    Args:
        build: called with the cancel flag and a function that emits events; returns the build's result.
    """

    def __init__(self, build: Callable[[Callable[[ProgressEvent], None], threading.Event], bool]) -> None:
        self._events: queue.Queue[ProgressEvent] = queue.Queue()
        self._cancelled = threading.Event()
        self._outcome: list[bool | BaseException] = []
        self._thread = threading.Thread(target=self._work, args=(build,), name="tensorrt-builder", daemon=True)

    def _work(self, build: Callable[[Callable[[ProgressEvent], None], threading.Event], bool]) -> None:
        try:
            self._outcome.append(build(self._events.put, self._cancelled))
        except BaseException as error:
            self._outcome.append(error)

    def run(self, report: Reporter) -> bool:
        """The builder's result.

        Raises:
            BaseException: whatever the reporter raised, Cancelled and KeyboardInterrupt among it; the builder has
                ended by then.
        """
        self._thread.start()
        try:
            while self._thread.is_alive() or not self._events.empty():
                try:
                    report(self._events.get(timeout=0.1))
                except queue.Empty:
                    continue
        except BaseException:
            # Whatever the reporter raised: the builder must not go on writing into a folder that is being removed.
            self._cancelled.set()
            self._thread.join()
            raise
        outcome = self._outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
