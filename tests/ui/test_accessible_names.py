"""Every control of every panel has a name that a screen reader reads: its description, since a tooltip is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import KVStudy
from workbench.ui.alpha_panel import AlphaPanel
from workbench.ui.calibrate_box import CalibrateBox
from workbench.ui.kv_scales_panel import KVScalesPanel
from workbench.ui.layer_diff_panel import LayerDiffPanel
from workbench.ui.model_chooser import ModelChooser
from workbench.ui.ranges_panel import RangesPanel
from workbench.ui.recipe_panel import RecipePanel
from workbench.ui.widget_tree import parts_of


def nameless(widget: ipywidgets.Widget) -> Iterator[str]:
    """The controls below a widget that have no name."""
    for part in parts_of(widget):
        shown = ipywidgets.HTML | ipywidgets.Label | ipywidgets.FloatProgress
        if "value" in part.keys and not isinstance(part, shown) and not getattr(part, "description", ""):
            yield f"{type(part).__name__} ({part.tooltip})"
        yield from nameless(part)


def test_a_control_without_a_description_is_found() -> None:
    assert len(list(nameless(ipywidgets.VBox([ipywidgets.HBox([ipywidgets.Text(tooltip="a tooltip")])])))) == 1


def test_panels_over_data(random_search: AlphaSearch, random_kv_study: KVStudy, make_diff: Callable[..., Any]) -> None:
    panels = (AlphaPanel(random_search), KVScalesPanel(random_kv_study), RangesPanel(make_ranges(SMALL)))
    for panel in (*panels, LayerDiffPanel(make_diff()), RecipePanel(BenchState())):
        assert list(nameless(panel)) == []
        panel.close()


@pytest.mark.parametrize("make", [CalibrateBox, lambda bench: ModelChooser(bench, "Reference")])
def test_boxes_of_a_bench(make: Callable[[Bench], Any], random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    box = make(Bench(random_model_dir(), cache_dir=tmp_path, device="cpu"))
    assert list(nameless(box)) == []
