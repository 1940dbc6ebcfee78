from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pandas as pd
import pytest

from workbench.bench.job import Job
from workbench.bench.judging import CURRENT, Judgement, JudgeOptions
from workbench.recipe import Recipe
from workbench.ui.alpha_work import AlphaWork

SECONDS = 10


@pytest.fixture
def free() -> Iterator[threading.Event]:
    free = threading.Event()
    yield free
    free.set()


def test_one_job_at_a_time(free: threading.Event) -> None:
    work, other, ended = AlphaWork(), ipywidgets.Button(), []
    work.also_blocks([other])
    first = Job("tune", lambda **_: free.wait(SECONDS))
    second = Job("judge", lambda **_: None)
    work.start(first, ended.append)
    work.start(second, ended.append)
    assert work.busy
    assert work.job_panel is not None
    assert work.job_panel.job is first
    assert second.state == "idle"
    buttons = (work.tune_group, work.tune_layer, work.tune_all, work.judge, other)
    assert all(button.disabled for button in buttons)
    free.set()
    first.wait(SECONDS)
    assert not any(button.disabled for button in buttons)
    assert ended == [first]


def test_a_job_that_is_started_again_blocks_again_and_ends_again(free: threading.Event) -> None:
    work, ended, states = AlphaWork(), [], []
    job = Job("tune", lambda **_: states.append(work.tune_all.disabled))
    work.start(job, ended.append)
    job.wait(SECONDS)
    assert work.job_panel is not None
    work.job_panel.start_button.click()
    job.wait(SECONDS)
    assert states == [True, True]
    assert ended == [job, job]
    free.set()


def test_stop_may_be_pressed_at_any_time(free: threading.Event) -> None:
    work = AlphaWork()
    work.stop()

    def wait(report: Any) -> None:
        from workbench.progress import ProgressEvent

        while not free.wait(0.005):
            report(ProgressEvent("tune", 1, 2))

    job = Job("tune", wait)
    work.start(job, lambda _: None)
    work.stop()
    work.stop()
    assert job.wait(SECONDS).state == "stopped"
    work.stop()


def test_a_judgement_has_figures_intervals_and_their_source() -> None:
    row = {"recipe": "a <b>", "perplexity": 3.0, "change": 0.0123, "change_low": 0.01, "change_high": 0.02}
    row |= {"kl": 0.0106, "kl_low": 0.009, "kl_high": 0.0125, "top1": 0.944, "top1_low": 0.9, "top1_high": 0.95}
    judgement = Judgement(pd.DataFrame([row]), {CURRENT: Recipe()}, JudgeOptions(8, 256))
    work = AlphaWork()
    work.show_judgement(judgement)
    shown = work._table.value
    assert "a &lt;b&gt;" in shown
    assert "0.0106 (0.0090 to 0.0125)" in shown
    assert "+1.23% (+1.00% to +2.00%)" in shown
    assert "94.4% (90.0% to 95.0%)" in shown
    assert "8 windows of 256 tokens" in shown
    assert "judge again" not in shown
    work.show_judgement(judgement, outdated=True)
    assert "The recipe has changed since: judge again." in work._table.value
    work.show_judgement(None)
    assert work._table.value == ""


def test_the_panel_of_the_job_before_is_closed() -> None:
    work = AlphaWork()
    for title in ("first", "second"):
        job = Job(title, lambda **_: None)
        before = work.job_panel
        work.start(job, lambda _: None)
        job.wait(SECONDS)
    assert before is not None
    assert before.comm is None
    assert work.job_panel is not None
    assert work.job_panel.comm is not None
