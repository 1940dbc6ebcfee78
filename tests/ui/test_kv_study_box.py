"""What is missing is collected once, whoever asks, and a stop holds."""

from __future__ import annotations

import pytest

from workbench.bench.bench import CalibrationRequest
from workbench.bench.job import Job
from workbench.bench.state import BenchState
from workbench.errors import CheckpointError
from workbench.ui.kv_study_box import KVStudyBox

SECONDS = 20


@pytest.fixture
def bench(kv_bench, keep_ranges):
    kv_bench.use_calibration(keep_ranges(kv_bench))
    kv_bench.hold.clear()
    return kv_bench


def collected(bench):
    box = KVStudyBox(bench)
    box.collect()
    return box


def test_a_plain_state_collects_nothing():
    box = collected(BenchState())
    assert (box.job, box.children) == (None, ())


def test_two_ask_and_one_job_runs(bench):
    first, second = collected(bench), collected(bench)
    assert first.job is second.job
    first.collect()
    bench.hold.set()
    first.wait(SECONDS)
    assert bench.made == 1
    first.collect()
    assert first.children == ()


def test_stop_pressed_twice_leaves_a_button_to_start_again(bench):
    box = collected(bench)
    (shown,) = box.children
    shown.stop_button.click()
    shown.stop_button.click()
    box.wait(SECONDS)
    box.collect()
    assert box.job.state == "stopped"
    assert box.children == (shown,)
    assert bench.jobs.find("") is None
    assert not shown.start_button.disabled
    bench.hold.set()
    shown.start_button.click()
    box.wait(SECONDS)
    assert bench.made == 1


def test_a_failure_waits_for_its_button(bench, monkeypatch):
    def work(**_):
        raise CheckpointError("the model's folder is gone", fix="put it back")

    monkeypatch.setattr(bench, "study_kv", lambda: Job("collect attention's inputs", work, bench.jobs))
    box = collected(bench)
    box.wait(SECONDS)
    box.collect()
    assert box.job.state == "failed"
    (shown,) = box.children
    assert "folder is gone; put it back" in shown.status.value


def test_a_calibration_of_another_panel_is_awaited(kv_bench):
    kv_bench.hold.clear()
    job = kv_bench.calibrate(CalibrationRequest(samples=32)).start()
    box = collected(kv_bench)
    assert box.job is job
    kv_bench.hold.set()
    box.wait(SECONDS)
    assert kv_bench.calibration.ranges.source[0].windows == 32
