"""Jobs: one at a time, stoppable while they wait and while they run, started again, never twice at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import traitlets

from workbench.bench import job as job_module
from workbench.bench.job import ENDED, Job, JobQueue
from workbench.errors import Cancelled, LimitError, WorkbenchError
from workbench.progress import ProgressEvent, Reporter

SECONDS = 10


class Gate:
    """Work that tells when it has begun, and ends when it is let go or stopped."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.runs = 0

    def __call__(self, report: Reporter) -> str:
        self.runs += 1
        self.begun.set()
        while not self.free.wait(0.005):
            report(ProgressEvent("wait", 1, 2))
        return "free"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.free.set()


def states_of(job: Job) -> list[str]:
    """Every state that the job enters from now on."""
    seen: list[str] = []
    job.observe(lambda change: seen.append(change["new"]), "state")
    return seen


def test_a_job_goes_from_idle_to_done_and_gives_its_result() -> None:
    job = Job("count", lambda **_: 3)
    seen = states_of(job)
    assert (job.state, job.message, job.running, job.elapsed_s, job.share) == ("idle", "not started", False, 0.0, 0.0)
    assert job.start() is job
    assert job.result(SECONDS) == 3
    assert seen == ["waiting", "running", "done"]
    assert (job.message, job.share, job.running) == ("done", 1.0, False)
    assert job.elapsed_s > 0


def test_progress_is_told_in_words_and_as_a_share() -> None:
    told: list[tuple[str, float, float | None]] = []
    job = Job("convert", lambda report: report(ProgressEvent("convert", 1500, 3000, "layers")))
    job.observe(lambda _: told.append((job.message, job.share, job.remaining_s)), "event")
    job.start().wait(SECONDS)
    message, share, remaining = told[-1]
    assert (message, share) == ("convert: 1,500 of 3,000 layers", 0.5)
    assert remaining == pytest.approx(job.elapsed_s, abs=1.0)


def test_nobody_guesses_the_remaining_time_from_little_progress() -> None:
    guesses: list[float | None] = []

    def work(report: Reporter) -> None:
        report(ProgressEvent("convert", 1, 100))
        guesses.append(job.remaining_s)

    job = Job("convert", work)
    job.start().wait(SECONDS)
    assert guesses == [None]
    assert job.remaining_s is None


def test_events_of_deeper_levels_and_too_many_of_them_are_passed_over() -> None:
    def work(report: Reporter) -> None:
        report(ProgressEvent("build", 0, 1000))
        report(ProgressEvent("a phase", 1, 2, depth=1))
        for step in range(1, 1001):
            report(ProgressEvent("build", step, 1000))

    job = Job("build", work)
    seen: list[ProgressEvent | None] = []
    job.observe(lambda change: seen.append(change["new"]), "event")
    job.start().wait(SECONDS)
    tasks = {event.task for event in seen if event is not None}
    assert tasks == {"build"}
    assert seen[-1] == ProgressEvent("build", 1000, 1000)  # the last one is always told
    assert len(seen) < 500


def test_jobs_of_one_queue_run_in_their_order_and_never_together() -> None:
    queue, order, together = JobQueue(), [], []

    def work(number: int) -> Any:
        def one(**_: Reporter) -> None:
            together.append(queue.running)
            order.append(number)
            threading.Event().wait(0.01)
            order.append(number)

        return one

    jobs = [Job(str(number), work(number), queue) for number in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.wait(SECONDS)
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]
    assert together == jobs
    assert queue.running is None


def test_a_waiting_job_says_what_it_waits_for(gate: Gate) -> None:
    queue = JobQueue()
    first, second = Job("calibrate", gate, queue).start(), Job("tune", lambda **_: None, queue)
    assert gate.begun.wait(SECONDS)
    waits = threading.Event()
    second.observe(lambda change: waits.set() if "waiting for" in change["new"] else None, "message")
    second.start()
    assert waits.wait(SECONDS)
    assert (second.message, second.state) == ("waiting for: calibrate", "waiting")
    gate.free.set()
    assert second.wait(SECONDS).state == "done"
    assert first.state == "done"


def test_a_job_that_is_stopped_while_it_waits_never_runs(gate: Gate) -> None:
    queue, ran = JobQueue(), []
    Job("calibrate", gate, queue).start()
    assert gate.begun.wait(SECONDS)
    second = Job("tune", lambda **_: ran.append(1), queue).start()
    third = Job("judge", lambda **_: "judged", queue).start()
    second.stop()
    assert second.wait(SECONDS).state == "stopped"
    gate.free.set()
    assert third.result(SECONDS) == "judged"
    assert ran == []


def test_a_running_job_stops_at_its_next_event(gate: Gate) -> None:
    job = Job("calibrate", gate, if_stopped="half of it stays").start()
    assert gate.begun.wait(SECONDS)
    seen = states_of(job)
    job.stop()
    job.stop()
    assert job.wait(SECONDS).state == "stopped"
    assert seen == ["stopping", "stopped"]
    assert job.message == "stopped; half of it stays"
    with pytest.raises(Cancelled, match="calibrate was stopped"):
        job.result()


def test_stop_does_nothing_before_a_start_and_after_the_end() -> None:
    job = Job("count", lambda **_: 1)
    job.stop()
    assert (job.state, job.stop_asked) == ("idle", False)
    assert job.start().result(SECONDS) == 1
    job.stop()
    assert (job.state, job.message, job.stop_asked) == ("done", "done", False)


def test_a_second_start_while_it_runs_changes_nothing(gate: Gate) -> None:
    job = Job("calibrate", gate).start()
    assert gate.begun.wait(SECONDS)
    assert job.start() is job
    gate.free.set()
    assert job.result(SECONDS) == "free"
    assert gate.runs == 1


def test_many_starts_at_once_run_it_once(gate: Gate) -> None:
    job = Job("calibrate", gate)
    together = threading.Barrier(8)

    def press() -> None:
        together.wait(SECONDS)
        job.start()

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    gate.free.set()
    job.wait(SECONDS)
    assert gate.runs == 1


def test_it_can_be_started_again_after_a_stop_and_after_a_failure() -> None:
    answers: list[Any] = [WorkbenchError("no text", fix="give one"), Cancelled("by hand"), "made"]

    def work(**_: Reporter) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    job = Job("calibrate", work)
    assert job.start().wait(SECONDS).state == "failed"
    assert job.message == "no text; give one"
    assert job.start().wait(SECONDS).state == "stopped"
    assert job.start().result(SECONDS) == "made"


def test_an_unforeseen_error_is_told_and_raised_again() -> None:
    def work(**_: Reporter) -> None:
        raise ZeroDivisionError("division by zero")

    job = Job("calibrate", work).start()
    with pytest.raises(ZeroDivisionError):
        job.result(SECONDS)
    assert job.state == "failed"
    assert job.message == "ZeroDivisionError: division by zero. Mend the cause and start again"


def test_a_gpu_without_memory_is_told_in_our_words() -> None:
    def work(**_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job = Job("a job", work).start().wait(5)
    assert job.state == "failed"
    assert job.message.startswith("the GPU's memory is used up: 2.00 GiB more were wanted; run fewer")
    with pytest.raises(LimitError, match="memory is used up"):
        job.result()


def test_a_failed_job_makes_room_for_the_next() -> None:
    queue = JobQueue()

    def fail(**_: Reporter) -> None:
        raise WorkbenchError("broken")

    Job("first", fail, queue).start()
    assert Job("second", lambda **_: 2, queue).start().result(SECONDS) == 2


def test_whoever_hears_of_the_end_may_ask_for_the_result() -> None:
    results: list[Any] = []
    job = Job("count", lambda **_: 7)

    def at_the_end(change: Any) -> None:
        if change["new"] in ENDED:
            results.append(job.result())

    job.observe(at_the_end, "state")
    job.start().wait(SECONDS)
    assert results == [7]


def test_waiting_needs_a_start_and_patience(gate: Gate) -> None:
    job = Job("calibrate", gate)
    with pytest.raises(RuntimeError, match="calibrate was not started: press Start"):
        job.wait()
    job.start()
    with pytest.raises(TimeoutError, match=r"calibrate has not ended after 0\.01 s"):
        job.wait(0.01)


def test_the_clock_stops_with_the_job_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0, 10)
    monkeypatch.setattr(job_module.time, "monotonic", lambda: float(next(now)))
    job = Job("count", lambda **_: None)
    took = job.start().wait(SECONDS).elapsed_s
    assert took == job.elapsed_s > 0
    job.start().wait(SECONDS)
    assert job.elapsed_s == took


def test_a_job_is_found_by_its_title_until_it_ends(gate: Gate) -> None:
    queue = JobQueue()
    first, second = Job("calibrate", gate, queue), Job("tune", lambda **_: None, queue)
    assert queue.find("calibrate") is None
    first.start()
    second.start()
    assert queue.find("calibrate") is first
    assert queue.find("tune") is second
    assert queue.find("cal") is first
    assert queue.find("une") is None
    gate.free.set()
    first.wait(SECONDS)
    second.wait(SECONDS)
    assert queue.find("calibrate") is None


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_who_hears_of_a_state_may_stop_the_job(gate: Gate, state: str) -> None:
    job = Job("calibrate", gate)
    job.observe(lambda change: job.stop() if change["new"] == state else None, "state")
    starter = threading.Thread(target=job.start, daemon=True)
    starter.start()
    starter.join(SECONDS)
    assert not starter.is_alive()
    assert job.wait(SECONDS).state == "stopped"


def test_a_start_may_wait_for_an_ending_job_whose_observer_stops_it() -> None:
    ended, go_on, runs = threading.Event(), threading.Event(), []
    job = Job("count", lambda **_: runs.append(1))

    def at_the_end(change: Any) -> None:
        if change["new"] == "done" and len(runs) == 1:
            ended.set()
            go_on.wait(SECONDS)
            job.stop()

    job.observe(at_the_end, "state")
    job.start()
    assert ended.wait(SECONDS)
    starter = threading.Thread(target=job.start, daemon=True)
    starter.start()  # joins the thread that is still in the observer
    starter.join(0.1)
    go_on.set()
    starter.join(SECONDS)
    assert not starter.is_alive()
    assert job.wait(SECONDS).state == "done"
    assert len(runs) == 2


def test_a_stop_that_comes_with_the_end_does_not_hide_it(gate: Gate) -> None:
    class Ending(Job):
        """Ends between a stop and the telling of it."""

        @traitlets.validate("state")
        def _end_first(self, proposal: Any) -> Any:
            if proposal["value"] == "stopping":
                gate.free.set()
                assert self._thread is not None
                self._thread.join(SECONDS)
            return proposal["value"]

    job = Ending("calibrate", gate)
    job.start()
    assert gate.begun.wait(SECONDS)
    job.stop()
    assert job.state in ENDED
    assert job.message != "stopping"


def test_an_observer_that_fails_at_the_start_leaves_no_job_behind(gate: Gate) -> None:
    queue = JobQueue()
    job = Job("calibrate", gate, queue)

    def fail(_change: Any) -> None:
        raise ZeroDivisionError

    job.observe(fail, "message")
    with pytest.raises(ZeroDivisionError):
        job.start()
    job.unobserve(fail, "message")
    job.wait(SECONDS)
    assert (queue.running, gate.runs) == (None, 0)


def test_work_that_gives_up_by_itself_says_why() -> None:
    def give_up(**_: Reporter) -> None:
        raise Cancelled("the recipe is another one now")

    assert Job("tune", give_up).start().wait(SECONDS).message == "stopped; the recipe is another one now"


def test_the_running_job_can_be_asked_for_while_jobs_come_and_go() -> None:
    queue, over = JobQueue(), threading.Event()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            while not over.is_set():
                assert isinstance(queue.running, Job | None)
        except BaseException as error:
            errors.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    for _ in range(100):
        Job("count", lambda **_: None, queue).start().wait(SECONDS)
    over.set()
    asker.join(SECONDS)
    assert errors == []
