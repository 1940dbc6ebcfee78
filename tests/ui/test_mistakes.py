"""What people do to a bench while panels are open: no traceback, nothing corrupted, and a way on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.conftest import speaking_model_dir  # noqa: F401 - the fixture
from workbench.bench.bench import CalibrationRequest
from workbench.bench.job import ENDED
from workbench.recipe import Int8KVCache, Int8WeightOnly, SmoothQuant
from workbench.ui.notebook import NotebookBench
from workbench.ui.panel import Panel

SECONDS = 60
SMALL_LOOK = CalibrationRequest(samples=3, length=24, tune=2)
PANELS: dict[str, Callable[[NotebookBench], Panel]] = {
    "ranges": NotebookBench.ranges,
    "alpha": NotebookBench.alpha,
    "kv_scales": NotebookBench.kv_scales,
    "layer_diff": NotebookBench.layer_diff,
    "playground": NotebookBench.playground,
    "choices": NotebookBench.choices,
}


@pytest.fixture
def bench(speaking_model_dir: Path, tmp_path: Path) -> NotebookBench:  # noqa: F811 - the imported fixture
    """A calibrated bench; its model and its cache are the test's own."""
    bench = NotebookBench(speaking_model_dir, cache_dir=tmp_path / "cache", device="cpu")
    bench.calibrate(SMALL_LOOK).start().result(SECONDS)
    return bench


def settled(*panels: Panel) -> None:
    for panel in panels:
        panel.settle(SECONDS)


def errors(*panels: Panel) -> list[str]:
    """The status lines of panels that show an error."""
    return [panel.status for panel in panels if "wb-error" in panel.status]


def test_a_cell_run_twice_shows_the_same_panel(bench: NotebookBench) -> None:
    for name, ask in PANELS.items():
        panel = ask(bench)
        assert ask(bench) is panel, name
        panel.close()
        assert ask(bench) is not panel, name


def test_all_panels_on_one_bench_follow_one_recipe(bench: NotebookBench) -> None:
    panels = [ask(bench) for ask in PANELS.values()]
    again = [type(panel)(state=bench) for panel in panels[:3]]
    steps = [
        lambda: bench.set_alpha(0.3),
        lambda: bench.set_kv_cache(Int8KVCache("per_tensor", 99.5)),
        lambda: bench.change(lambda recipe: type(recipe)(model=recipe.model, weights=Int8WeightOnly())),
        bench.undo,
        lambda: bench.set_alphas({"layers.1.o": 0.9}),
        bench.redo,
        lambda: setattr(bench, "selected", "layers.1.mlp.down"),
    ]
    for step in steps:
        step()
    settled(*panels, *again)
    assert errors(*panels, *again) == []
    assert again[1].group == panels[1].group == "layers.1.down"
    assert again[2].layer == panels[2].layer == 1


def test_panels_asked_before_anything_is_calibrated(speaking_model_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    bench = NotebookBench(speaking_model_dir, cache_dir=tmp_path / "cache", device="cpu")
    job = bench.calibrate(SMALL_LOOK).start()
    panels = [ask(bench) for ask in PANELS.values()]
    job.result(SECONDS)
    settled(*panels)
    assert errors(*panels) == []
    assert [name for name, panel in zip(PANELS, panels[:3], strict=False) if panel.figure is None] == []


def test_the_cache_is_deleted_while_panels_are_open(bench: NotebookBench) -> None:
    panels = [ask(bench) for ask in PANELS.values()]
    settled(*panels)
    shutil.rmtree(bench.workspace.folder)
    bench.set_alpha(0.4)
    bench.set_kv_cache(Int8KVCache("per_head", 99.9))
    bench.selected = "layers.0.mlp.down"
    settled(*panels)
    assert errors(*panels) == []
    assert bench.calibrations() == {}
    bench.calibrate(SMALL_LOOK).start().result(SECONDS)
    settled(*panels)
    assert errors(*panels) == []
    assert len(bench.calibrations()) == 1


def test_the_model_is_moved_away_and_back(bench: NotebookBench) -> None:
    kept = bench.model_dir.rename(bench.model_dir.with_name("elsewhere"))
    panel = bench.kv_scales()
    panel.settle(SECONDS)
    (shown,) = panel.view.study.children  # type: ignore[attr-defined]
    assert shown.job.state == "failed"
    assert "was moved or deleted meanwhile; put the folder back, and try again" in shown.status.value
    assert str(bench.model_dir) in shown.status.value
    kept.rename(bench.model_dir)
    shown.start_button.click()
    panel.settle(SECONDS)
    assert panel.error is not None  # type: ignore[attr-defined]


def test_stop_pressed_twice_everywhere(bench: NotebookBench) -> None:
    for ask in (bench.tune, bench.study_kv, lambda: bench.calibrate(CalibrationRequest(samples=200, length=24))):
        job = ask().start()
        job.stop()
        job.stop()
        job.wait(SECONDS)
        assert job.state in ENDED
        job.start().stop()
        job.stop()
        job.wait(SECONDS)
    assert bench.jobs.running is None
    panel = bench.kv_scales()
    panel.settle(SECONDS)
    assert errors(panel) == []
    assert panel.error is not None  # type: ignore[attr-defined]


KILLED = """
import sys
from workbench.bench.bench import Bench, CalibrationRequest
bench = Bench(sys.argv[1], cache_dir=sys.argv[2], device="cpu")
job = bench.study_kv()
job.observe(lambda _: print("at work", flush=True), "event")
while True:
    job.start().wait()
    (bench.workspace.folder / "attention" / "2x64" / "attention_inputs.safetensors").unlink(missing_ok=True)
"""


def test_a_kernel_killed_at_work_leaves_a_usable_cache(bench: NotebookBench, tmp_path: Path) -> None:
    folder, before = bench.model_dir, bench.calibrations()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(SECONDS)
    process.stdout.close()
    later = NotebookBench(folder, cache_dir=tmp_path / "cache", device="cpu")
    assert later.calibrations() == before
    later.recipe = later.recipe.from_dict({**later.recipe.to_dict()})
    panel = later.kv_scales()
    panel.settle(SECONDS)
    assert panel.error is not None  # type: ignore[attr-defined]
    assert errors(panel) == []
    assert isinstance(later.recipe.weights, SmoothQuant)
