"""Long work beside a notebook: a job runs in a thread, tells its progress, and can be stopped. Shows nothing itself.

Jobs of one queue run one after the other, so that two of them never change the same state at once. Traits of a job
change in its thread; who observes them must not block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import traitlets

from workbench.errors import Cancelled, WorkbenchError
from workbench.progress import ProgressEvent

# A panel needs no more than this many updates a second; a build sends thousands of events.
UPDATES_PER_SECOND = 10
# Less of a job than this says nothing about how long the rest takes.
LEAST_SHARE_FOR_A_GUESS = 0.05

ENDED = ("done", "stopped", "failed")

Work = Callable[..., Any]


class JobQueue:
    """Lets one job run at a time; the others wait in the order in which they came."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._waiting: list[Job] = []

    @property
    def running(self) -> Job | None:
        """The job whose turn it is."""
        with self._turn:
            return self._waiting[0] if self._waiting else None

    def find(self, title: str) -> Job | None:
        """The first job that is under way, or awaits its turn, and whose title begins so."""
        with self._turn:
            return next((job for job in self._waiting if job.title.startswith(title)), None)

    def enter(self, job: Job) -> None:
        """Line up."""
        with self._turn:
            self._waiting.append(job)

    def wait_for_turn(self, job: Job) -> bool:
        """Wait until every earlier job has ended; False when ``job`` was asked to stop before its turn."""
        with self._turn:
            while self._waiting[0] is not job and not job.stop_asked:
                self._turn.wait(0.1)
            return not job.stop_asked

    def leave(self, job: Job) -> None:
        """Make room for the next one."""
        with self._turn:
            self._waiting.remove(job)
            self._turn.notify_all()


class Job(traitlets.HasTraits):
    """One piece of long work.

    Args:
        title: what it does, in the user's words.
        work: called in a thread with ``report=``, a :data:`workbench.progress.Reporter`; what it returns is the result.
        queue: whose turn it awaits; None gives it a queue of its own.
        if_stopped: what a stop leaves, in the user's words.

    Attributes:
        state: "idle", then "waiting" for an earlier job, "running", "stopping", and one of "done", "stopped", "failed".
        event: the newest event of the job's top level, at most :data:`UPDATES_PER_SECOND` of them a second.
        message: what is going on, or how it ended, in one sentence.
    """

    state = traitlets.Unicode("idle")
    event = traitlets.Instance(ProgressEvent, allow_none=True)
    message = traitlets.Unicode("not started")

    def __init__(
        self, title: str, work: Work, queue: JobQueue | None = None, *, if_stopped: str = "nothing was left behind"
    ) -> None:
        super().__init__()
        self.title, self._if_stopped = title, if_stopped
        self._work = work
        self._queue = queue or JobQueue()
        self._stop = threading.Event()
        # Held for moments only: who observes a trait may start and stop jobs, so nothing is told while it is held.
        self._pressing = threading.Lock()
        self._end_told: tuple[str, str] | None = None
        self._thread: threading.Thread | None = None
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._begun = self._ended = self._told = 0.0

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def stop_asked(self) -> bool:
        return self._stop.is_set()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was started, or that it took; 0 before."""
        if not self._begun:
            return 0.0
        return (self._ended or time.monotonic()) - self._begun

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        if self.state == "done":
            return 1.0
        return self.event.done / self.event.total if self.event is not None and self.event.total else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left at the speed so far; None while nobody can tell."""
        known = self.state == "running" and LEAST_SHARE_FOR_A_GUESS < self.share < 1
        return self.elapsed_s * (1 - self.share) / self.share if known else None

    def start(self) -> Job:
        """Run it, unless it is under way; returns the job."""
        told = threading.Event()
        while not self._begin(told):
            leaving = self._thread
            if self._how_it_ended() is None or leaving is None or leaving is threading.current_thread():
                return self
            leaving.join()  # it has ended, and only its thread is still leaving
        try:
            self.event = None
            self.message, self.state = "starting", "waiting"
        except BaseException:
            self._stop.set()
            raise
        finally:
            told.set()
        return self

    def stop(self) -> None:
        """Ask it to end: it does at its next event, and removes what it had written."""
        with self._pressing:
            if not self.running or self.stop_asked or self._how_it_ended() is not None:
                return
            self._stop.set()
        self.message = "stopping"
        if self.state == "running":
            self.state = "stopping"
        end = self._how_it_ended()
        if end is not None:  # meanwhile, and that has the last word
            self.message, self.state = end

    def _how_it_ended(self) -> tuple[str, str] | None:
        """Message and state of the end; None before it."""
        return self._end_told

    def _begin(self, told: threading.Event) -> bool:
        """Start the thread, which goes on when ``told`` is set; False where there is one already."""
        with self._pressing:
            if self.running:
                return False
            self._stop.clear()
            self._outcome, self._error, self._end_told = None, None, None
            self._begun, self._ended, self._told = time.monotonic(), 0.0, 0.0
            self._thread = threading.Thread(target=self._run, args=(told,), name=self.title, daemon=True)
            self._thread.start()
            self._queue.enter(self)
        return True

    def wait(self, timeout_s: float | None = None) -> Job:
        """Wait for its end, however it ends.

        Raises:
            RuntimeError: it was never started. TimeoutError: it has not ended in time.
        """
        if self._thread is None:
            raise RuntimeError(f"{self.title} was not started: press Start, or call start()")
        if self._thread is threading.current_thread():
            return self  # who observes the state hears of the end in the job's own thread
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.title} has not ended after {timeout_s} s")
        return self

    def result(self, timeout_s: float | None = None) -> Any:
        """What the work returned; waits for its end.

        Raises:
            RuntimeError, TimeoutError: as :meth:`wait`.
            BaseException: what the work raised; Cancelled when it was stopped.
        """
        self.wait(timeout_s)
        if self._error is not None:
            raise self._error
        return self._outcome

    def report(self, event: ProgressEvent) -> None:
        """The reporter that the work is given.

        Raises:
            Cancelled: a stop was asked for.
        """
        if self.stop_asked:
            raise Cancelled(f"{self.title} was stopped")
        now = time.monotonic()
        if event.depth > 0 or (now - self._told < 1 / UPDATES_PER_SECOND and event.done < event.total):
            return
        self._told = now
        self.message = _progress(event)
        self.event = event

    def _run(self, told: threading.Event) -> None:
        told.wait()
        try:
            self._await_turn()
            self._begun, self.message = time.monotonic(), "working"
            self.state = "running"
            self._outcome = self._work(report=self.report)
        except Cancelled as error:
            self._end("stopped", f"stopped; {self._if_stopped if self.stop_asked else error}", error)
        except WorkbenchError as error:
            self._end("failed", str(error), error)
        except Exception as error:
            self._fail(error)
        else:
            self._end("done", "done", None)
        finally:
            self._queue.leave(self)

    def _fail(self, error: Exception) -> None:
        """It ended by what nobody foresaw, or because a GPU has no memory left."""
        from workbench.evaluation.memory import out_of_gpu_memory

        told = out_of_gpu_memory(error)
        if told is not None:
            told.__cause__ = error
            self._end("failed", str(told), told)
        else:
            self._end("failed", f"{type(error).__name__}: {error}. Mend the cause and start again", error)

    def _await_turn(self) -> None:
        ahead = self._queue.running
        if ahead is not None and ahead is not self:
            self.message = f"waiting for: {ahead.title}"
        if not self._queue.wait_for_turn(self):
            raise Cancelled(f"{self.title} was stopped")

    def _end(self, state: str, message: str, error: BaseException | None) -> None:
        self._error, self._ended = error, time.monotonic()
        with self._pressing:
            self._end_told = message, state
        self.message = message
        self.state = state


def _progress(event: ProgressEvent) -> str:
    amount = f"{event.done:,.0f} of {event.total:,.0f} {event.unit}" if event.total else ""
    return f"{event.task}: {amount}"
