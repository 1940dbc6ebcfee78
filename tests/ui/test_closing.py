"""A closed panel leaves no widget registered; ipywidgets would keep each until the kernel ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from hand_made_ranges import make_ranges
from ipywidgets.widgets.widget import _instances
from random_model import SMALL

from workbench.bench.state import BenchState
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import KVStudy
from workbench.ui.alpha_panel import AlphaPanel
from workbench.ui.calibrate_box import CalibrateBox
from workbench.ui.kv_scales_panel import KVScalesPanel
from workbench.ui.layer_diff_panel import LayerDiffPanel
from workbench.ui.panel import Panel
from workbench.ui.ranges_panel import RangesPanel
from workbench.ui.recipe_panel import RecipePanel


def left_behind(make: Callable[[], Panel]) -> list[str]:
    gc.collect()  # what tests before this one left goes now, not meanwhile
    before = set(_instances)
    panel = make()
    panel.settle()
    made = set(_instances) - before
    panel.close()
    assert len(made) > 10
    return [repr(_instances[each])[:80] for each in made if each in _instances]


def test_panels_over_data(random_search: AlphaSearch, random_kv_study: KVStudy, make_diff: Callable[..., Any]) -> None:
    assert left_behind(lambda: AlphaPanel(random_search)) == []
    assert left_behind(lambda: KVScalesPanel(random_kv_study)) == []
    assert left_behind(lambda: RangesPanel(make_ranges(SMALL))) == []
    assert left_behind(lambda: LayerDiffPanel(make_diff(), rerun=lambda diff, _report: diff)) == []
    assert left_behind(lambda: RecipePanel(BenchState())) == []


@pytest.mark.parametrize("state", ["empty", "calibrated"])
def test_panels_of_a_bench(ranges_bench: Callable[[], Any], keep_ranges: Callable[..., Any], state: str) -> None:
    bench = ranges_bench()
    if state == "calibrated":
        bench.use_calibration(keep_ranges(bench))
    assert left_behind(lambda: RangesPanel(state=bench)) == []
    assert left_behind(lambda: AlphaPanel(state=bench)) == []


def test_a_box_inside_a_closed_panel_watches_nothing(
    ranges_bench: Callable[[], Any], keep_ranges: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, heard = ranges_bench(), []
    bench.use_calibration(keep_ranges(bench, windows=8))
    panel = RangesPanel(state=bench)
    monkeypatch.setattr(CalibrateBox, "show_cached", heard.append)
    panel.close()
    bench.use_calibration(keep_ranges(bench, windows=16))
    assert heard == []
