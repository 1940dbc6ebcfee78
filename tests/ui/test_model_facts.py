from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState, Calibration
from workbench.quantization.alpha_search import AlphaSearch
from workbench.ui.model_facts import model_facts


@pytest.fixture
def bench(random_model_dir: Callable[..., Path], tmp_path: Path) -> Bench:
    return Bench(random_model_dir(), cache_dir=tmp_path, device="cpu")


def test_a_bench_has_sizes_a_device_and_no_calibration(bench: Bench) -> None:
    facts = model_facts(bench)
    assert "<b>model</b>: 2 layers, hidden 64, MLP 160, 4 heads of 16, vocabulary 97; on cpu" in facts
    assert "Nothing is calibrated yet: bench.ranges() does it" in facts


def test_calibrations_in_the_cache_are_named(bench: Bench, random_calibration: Path) -> None:
    folder = bench.workspace.calibration("of mine")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(random_calibration)
    assert "Nothing is calibrated yet; also in the cache: random, 4 x 12 tokens" in model_facts(bench)
    bench.use_calibration(folder)
    facts = model_facts(bench)
    assert "Calibrated with random, 4 x 12 tokens" in facts
    assert "also in the cache" not in facts


def test_a_plain_state_has_its_calibration_or_nothing(random_search: AlphaSearch) -> None:
    assert model_facts(BenchState()) == ""
    state = BenchState(calibration=Calibration("a <text>", random_search.ranges))
    assert model_facts(state) == '<div class="wb-line">Calibrated with a &lt;text&gt;</div>'
