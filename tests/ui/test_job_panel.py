"""The job panel through its widgets' traits, without a browser."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from workbench.bench.job import Job
from workbench.errors import Cancelled, CheckpointError
from workbench.progress import ProgressEvent, Reporter
from workbench.ui.job_panel import JobPanel


def test_a_job_runs_and_gives_its_result() -> None:
    def job(report: Reporter) -> str:
        report(ProgressEvent("convert", 5, 10, "B"))
        report(ProgressEvent("convert", 10, 10, "B"))
        return "made"

    panel = JobPanel("convert the model", job)
    assert "not started" in panel.status.value
    assert panel.start().result(10) == "made"
    assert (panel.bar.value, panel.bar.bar_style) == (1.0, "success")
    assert panel.status.value.endswith("done")
    assert (panel.start_button.disabled, panel.stop_button.disabled) == (False, True)


def test_progress_shows_amounts_and_time_left() -> None:
    seen: list[Any] = []
    go_on = threading.Event()

    def job(report: Reporter) -> None:
        report(ProgressEvent("build: Engine", 40, 80, "steps"))
        report(ProgressEvent("build: a phase within", 1, 2, "steps", depth=1))
        seen.append(panel.status.value)
        go_on.wait(10)

    panel = JobPanel("build", job)
    panel.start()
    while not seen:
        pass
    assert panel.running
    assert "build: Engine: 40 of 80 steps, about" in seen[0]
    assert "within" not in seen[0]
    assert panel.bar.value == 0.5
    assert (panel.start_button.disabled, panel.stop_button.disabled) == (True, False)
    go_on.set()
    panel.result(10)


def test_stop_ends_the_job_at_its_next_event_and_may_be_pressed_twice() -> None:
    started = threading.Event()

    def job(report: Reporter) -> None:
        while True:
            report(ProgressEvent("calibrate", 1, 100, "tokens"))
            started.set()

    panel = JobPanel("calibrate", job).start()
    assert started.wait(10)
    panel.stop_button.click()
    panel.stop_button.click()
    with pytest.raises(Cancelled, match="calibrate was stopped"):
        panel.result(10)
    assert "stopped; nothing was left behind" in panel.status.value
    assert panel.bar.bar_style == "warning"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (CheckpointError("no <such> folder", fix="give another"), "no &lt;such&gt; folder; give another"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero. Mend the cause"),
    ],
)
def test_an_error_is_shown_and_raised_again(error: Exception, shown: str) -> None:
    def job(**_: Reporter) -> None:
        raise error

    panel = JobPanel("convert", job).start()
    with pytest.raises(type(error)):
        panel.result(10)
    assert shown in panel.status.value
    assert panel.bar.bar_style == "danger"


def test_a_second_start_runs_it_again_and_never_twice_at_once() -> None:
    release, runs = threading.Event(), []

    def job(**_: Reporter) -> int:
        runs.append(1)
        release.wait(10)
        return len(runs)

    panel = JobPanel("count", job)
    panel.start()
    panel.start_button.click()
    release.set()
    assert panel.result(10) == 1
    assert panel.start().result(10) == 2


def test_the_button_says_what_it_does_next() -> None:
    def text(**names: Any) -> tuple[str, str]:
        panel = JobPanel("build", lambda **_: None, **names)
        before = panel.start_button.description
        panel.start().result(10)
        return before, panel.start_button.description

    assert text() == ("Start", "Start again")
    assert text(action="Build") == ("Build", "Build again")
    assert text(action="Compare", next_action="Compare") == ("Compare", "Compare")


def test_a_result_needs_a_start_and_an_end() -> None:
    release = threading.Event()
    panel = JobPanel("wait", lambda **_: release.wait(10))
    with pytest.raises(RuntimeError, match="press Start"):
        panel.result()
    panel.start()
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.01 s"):
        panel.result(0.01)
    release.set()
    panel.result(10)


def test_a_closed_panel_hears_nothing_more_and_the_job_goes_on() -> None:
    free = threading.Event()
    job = Job("slow", lambda **_: free.wait(10))
    panel = JobPanel(job).start()
    bar, shown = panel.bar, panel.status.value
    panel.close()
    panel.close()
    assert bar.comm is None
    free.set()
    assert job.wait(10).state == "done"
    assert panel.status.value == shown


def test_a_failure_stands_out_and_start_can_be_left_to_other_buttons() -> None:
    def fail(report: Reporter) -> None:  # noqa: ARG001
        raise CheckpointError("no folder", fix="give one")

    panel = JobPanel(Job("convert", fail), again=False)
    assert panel.start_button.layout.display == "none"
    panel.start()
    with pytest.raises(CheckpointError):
        panel.result(10)
    assert '<span class="wb-error" role="alert">no folder; give one</span>' in panel.status.value
