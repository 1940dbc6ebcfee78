from __future__ import annotations

import pytest

from workbench.bench.bench import QUICK_LOOK, CalibrationRequest
from workbench.errors import RecipeError
from workbench.ui.calibrate_box import CalibrateBox
from workbench.ui.job_panel import JobPanel


@pytest.fixture
def bench(ranges_bench):
    return ranges_bench()


def test_it_asks_for_what_the_widgets_say(bench):
    box = CalibrateBox(bench)
    box.samples.value, box.length.value = 16, 64
    assert box.request() == CalibrationRequest(None, 16, 64, tune=16)
    box.samples.value = 3
    assert box.request().tune == 3


def test_no_window_is_longer_than_the_model_allows(bench):
    box = CalibrateBox(bench)
    box.length.value = 10_000_000
    assert box.length.value == bench.config.max_position_embeddings


def test_a_file_needs_a_name(bench):
    box = CalibrateBox(bench)
    assert box.name.layout.display == "none"
    box.data.value = "named"
    assert box.name.layout.display is None
    with pytest.raises(RecipeError, match="no file or dataset is named"):
        box.request()
    box.button.click()
    assert "no file or dataset is named" in box.status
    box.name.value, box.column.value = " notes.jsonl ", "article"
    assert (box.request().data, box.request().column) == ("notes.jsonl", "article")
    box.data.value = "built-in"
    assert box.name.layout.display == "none"


def test_calibrate_runs_a_job_that_stops(bench):
    box = CalibrateBox(bench)
    bench.hold.clear()
    box.button.click()
    (shown,) = box._place.children
    assert isinstance(shown, JobPanel)
    first = box.job
    box.button.click()
    assert box.job is first
    assert "is under way" in box.status
    shown.stop_button.click()
    shown.stop_button.click()
    first.wait(10)
    assert first.state == "stopped"
    bench.hold.set()
    box.button.click()
    assert box.job is not first
    box.job.wait(10)
    assert box.job.state == "done"
    assert bench.calibration is not None
    assert box.status == ""


def test_what_is_in_the_cache_is_offered_and_taken(bench, keep_ranges):
    folder = keep_ranges(bench, windows=16)
    other = keep_ranges(bench, windows=32)
    bench.use_calibration(folder)
    box = CalibrateBox(bench)
    assert box.cached.value == str(folder)
    assert len(box.cached.options) == 2
    box.cached.value = str(other)
    assert bench.calibration.folder == other


def test_a_calibration_that_is_gone_is_an_error_in_the_box(bench, keep_ranges):
    folder = keep_ranges(bench, windows=16)
    gone = keep_ranges(bench, windows=32)
    bench.use_calibration(folder)
    box = CalibrateBox(bench)
    for file in gone.iterdir():
        file.unlink()
    box.cached.value = str(gone)
    assert "missing" in box.status
    assert bench.calibration.folder == folder
    assert box.cached.value == str(folder)


def test_a_second_box_shows_the_job_of_the_first(bench):
    first = CalibrateBox(bench)
    assert first.quick_look_needed
    bench.hold.clear()
    job = first.quick_look()
    assert job.title.endswith(QUICK_LOOK.name)
    second = CalibrateBox(bench)
    assert second.job is job
    assert not second.quick_look_needed
    bench.hold.set()
    job.wait(10)
    assert second.cached.value == first.cached.value
    first.close()
