"""Layer differences made by hand, so that widgets are tested without models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hand_made_ranges import make_ranges
from widget_page import widget_page

from tests.bench.conftest import speaking_model_dir  # noqa: F401 - a fixture
from workbench.bench.bench import Bench, CalibrationRequest
from workbench.bench.job import Job
from workbench.evaluation.agreement import Agreement
from workbench.evaluation.layer_diff import DiffOptions, LayerDiff
from workbench.evaluation.tap_error import TapError
from workbench.evaluation.token_errors import TokenErrors
from workbench.model.taps import split_tap, tap_names
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.kv_error import KVStudy
from workbench.quantization.ranges import RANGES_FILE
from workbench.recipe import Int8WeightOnly, Recipe


@pytest.fixture(scope="session")
def make_diff() -> Callable[..., LayerDiff]:
    """``make_diff(layers=2, spoil={tap: error})``: every tap errs by 1e-3 of its size, or as ``spoil`` says.

    Two windows of five tokens, called a to e and f to j; the last token of each errs three times as much.
    """

    def make(*, layers: int = 2, spoil: dict[str, float] | None = None) -> LayerDiff:
        generator = torch.Generator().manual_seed(0)
        rows, samples, tokens = [], {}, {}
        for tap in tap_names(layers):
            error = TapError(tap, 2)
            for _ in range(2):
                reference = torch.randn(1, 5, 10, generator=generator)
                noise = torch.randn(1, 5, 10, generator=generator)
                noise[:, 4] *= 3
                error.add(reference, reference + (spoil or {}).get(tap, 1e-3) * noise)
            layer, site = split_tap(tap)
            rows.append({"tap": tap, "layer": layer, "site": site, **vars(error.row())})
            samples[tap], tokens[tap] = error.samples(), error.tokens()
        frame = pd.DataFrame(rows).astype({"layer": "Int64"})
        summary = Agreement(0.004, 0.97, 0.999, 0.03, 16.0, 16.1, 50)
        per_token = TokenErrors(torch.arange(10).view(2, 5), tokens, (tuple("abcde"), tuple("fghij")))
        return LayerDiff(frame, summary, DiffOptions("float16"), 2, 10, per_token, _samples=samples)

    return make


@pytest.fixture
def keep_ranges() -> Callable[..., Path]:
    """``keep_ranges(bench, windows=16)``: puts hand-made ranges of so many windows into the bench's cache."""

    def keep(bench: Bench, **choices: Any) -> Path:
        ranges = make_ranges(bench.config, fingerprint=bench.workspace.fingerprint, **choices)
        folder = bench.workspace.calibration(f"words {ranges.source[0].windows}")
        folder.mkdir(parents=True)
        ranges.save(folder / RANGES_FILE)
        return folder

    return keep


@pytest.fixture
def ranges_bench(
    random_model_dir: Callable[..., Path], tmp_path: Path, keep_ranges: Callable[..., Path]
) -> Callable[[], Bench]:
    """``ranges_bench()``: a bench on a small random model, whose calibrations are hand-made.

    ``bench.hold`` is an event: a calibration that is under way goes on while it is set.
    """

    class RangesBench(Bench):
        def __init__(self) -> None:
            super().__init__(random_model_dir(kv_heads=2), cache_dir=tmp_path, device="cpu")
            self.hold = threading.Event()
            self.hold.set()

        def calibrate(self, request: Any = None, _options: Any = None) -> Job:
            request = request or CalibrationRequest()

            def work(report: Reporter) -> Any:
                for step in range(2):
                    report(ProgressEvent("calibrate", step, 2, "windows"))
                    while not self.hold.wait(0.01):
                        report(ProgressEvent("calibrate", step, 2, "windows"))
                folder = self.workspace.calibration(f"words {request.samples}")
                return self.use_calibration(folder if folder.exists() else keep_ranges(self, windows=request.samples))

            return Job(f"calibrate: {request.name}", work, self.jobs)

    return RangesBench


@pytest.fixture
def speaking_bench(speaking_model_dir: Path, tmp_path: Path) -> Bench:  # noqa: F811 - the imported fixture
    """A bench on a small random model with a tokenizer, whose recipe needs no calibration."""
    recipe = Recipe(dtype="bfloat16", weights=Int8WeightOnly())
    return Bench(speaking_model_dir, recipe, cache_dir=tmp_path / "cache", device="cpu")


@pytest.fixture
def kv_bench(ranges_bench: Callable[[], Bench], random_kv_study: KVStudy) -> Iterator[Any]:
    """``ranges_bench()`` whose study is made by a job that waits for ``bench.hold`` and counts in ``bench.made``."""
    bench: Any = ranges_bench()
    bench.made = 0

    def study_kv() -> Job:
        def work(report: Reporter) -> None:
            for step in range(2):
                report(ProgressEvent("attention inputs", step, 2, "layers"))
                while not bench.hold.wait(0.01):
                    report(ProgressEvent("attention inputs", step, 2, "layers"))
            bench.made += 1
            study = random_kv_study
            bench.kv_study = KVStudy(study.config, study.inputs.file.path, study.ranges)

        return Job("collect attention's inputs", work, bench.jobs)

    bench.study_kv = study_kv
    yield bench
    bench.hold.set()
    while (job := bench.jobs.find("")) is not None:
        job.wait(20)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Any]:
    """A page of widgets for a whole module: starting a browser takes a second."""
    with widget_page() as page:
        yield page


@pytest.fixture
def page(browser_page: Any) -> Iterator[Any]:
    """The page with an empty row; fails the test when the page throws an error."""
    complaints: list[str] = []
    browser_page.on("pageerror", lambda error: complaints.append(str(error)))
    browser_page.mouse.move(0, 899)
    browser_page.evaluate("() => { document.getElementById('row').replaceChildren(); window.models = []; }")
    yield browser_page
    assert complaints == []
