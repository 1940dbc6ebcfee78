"""The panel through its traits, without a browser."""

from __future__ import annotations

import base64
import threading

import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

import workbench
from workbench.bench.state import BenchState, Calibration
from workbench.errors import Cancelled, WorkbenchError
from workbench.progress import ProgressEvent
from workbench.recipe import Recipe
from workbench.ui import ranges_panel
from workbench.ui.ranges_panel import RangesPanel

HOT = "layers.1.mlp.down.input"
COOL = "layers.0.attention.o.input"


@pytest.fixture(scope="module")
def ranges():
    return make_ranges(SMALL, spoil={HOT: 50.0})


@pytest.fixture
def panel(ranges):
    return RangesPanel(ranges)


@pytest.fixture
def bench(ranges_bench, keep_ranges):
    """A bench that has been calibrated; another calibration is in the cache."""
    bench = ranges_bench()
    keep_ranges(bench, windows=16)
    bench.use_calibration(keep_ranges(bench, windows=128, spoil={HOT: 50.0}))
    return bench


def cell_of(panel, place):
    return panel._map.cell_of(place)


def test_it_is_where_the_manual_says():
    assert workbench.ui.RangesPanel is RangesPanel


def test_it_opens_on_the_hottest_input(panel):
    assert panel.place == HOT
    assert panel._cells.selected == cell_of(panel, HOT)
    assert "words, 128 x 512 tokens" in panel._head.value
    assert "channel 3" in panel._table.value
    assert "largest magnitude" in panel._about.value
    assert HOT in repr(panel)
    assert panel.status == ""


def test_a_click_shows_another_place_and_tells_the_state(panel):
    before = panel._histogram.spec
    panel._cells.selected = cell_of(panel, COOL)
    assert panel.place == COOL
    assert panel._state.selected == "layers.0.attention.o"
    assert panel._places.value == COOL
    assert panel._histogram.spec != before
    assert panel._maxima.chart.title.endswith("32 channels")
    panel._places.value = "layers.1.value"
    assert panel._cells.selected == cell_of(panel, "layers.1.value")
    assert panel._state.selected == "layers.1.attention.qkv"
    assert "KV head" in panel._maxima.chart.title


def test_a_cell_without_a_place_changes_nothing(panel):
    panel._cells.selected = [0, 2]
    assert panel.place == HOT
    assert panel._cells.selected == cell_of(panel, HOT)


def test_opening_a_panel_leaves_the_selection_alone(ranges):
    state = BenchState(calibration=Calibration("c", ranges), selected="layers.0.mlp.gate_up")
    assert RangesPanel(state=state).place == "layers.0.mlp.gate_up.input"
    assert state.selected == "layers.0.mlp.gate_up"
    state.selected = ""
    assert RangesPanel(state=state).place == HOT
    assert state.selected == ""


def test_two_panels_of_one_state_follow_each_other(ranges):
    state = BenchState(calibration=Calibration("c", ranges))
    first, second = RangesPanel(state=state), RangesPanel(state=state)
    first._cells.selected = cell_of(first, COOL)
    assert second.place == COOL
    second.place = "layers.0.attention.o.output"
    assert first.place == COOL  # the same linear layer: each keeps its own side of it
    state.selected = "layers.1.mlp.act"
    assert first.place == second.place == HOT
    assert state.selected == "layers.1.mlp.act"
    state.selected = "layers.1.residual_pre"
    assert first.place == HOT


def test_the_side_that_is_looked_at_is_kept(panel):
    panel.place = "layers.0.mlp.down.output"
    panel._state.selected = "layers.1.mlp.gate_up"
    assert panel.place == "layers.1.mlp.gate_up.output"


def test_a_closed_panel_follows_no_more(panel):
    state = panel._state
    panel.close()
    panel.close()
    state.selected = "layers.0.attention.o"
    assert panel.place == HOT


def test_another_metric_colours_the_map_anew(panel):
    texts = panel._cells.texts
    panel._metrics.value = "outlier_ratio"
    assert panel.metric == "outlier_ratio"
    assert panel._cells.label == "largest channel / median channel"
    assert panel._cells.texts != texts
    assert panel._cells.selected == cell_of(panel, HOT)
    assert "median channel" in panel._scale.value
    panel.metric = "p99_9"
    assert panel._metrics.value == "p99_9"


@pytest.mark.parametrize(
    ("trait", "value", "message"),
    [
        ("metric", "p98", "metric 'p98'; allowed: absmax, p99"),
        ("place", "layers.1.mlp.down", "place 'layers.1.mlp.down'; allowed: layers.0.attention.qkv.input"),
        ("shows", "both", "shows 'both'; allowed: this, other, ratio"),
        ("compare", "smoothing", "compare 'smoothing'; allowed: ''"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(panel, trait, value, message):
    with pytest.raises(WorkbenchError, match=message):
        setattr(panel, trait, value)
    assert panel.place == HOT


def test_nothing_calibrated_says_what_to_do():
    panel = RangesPanel()
    assert "RangesPanel(ActivationRanges.load(folder))" in panel._head.value
    assert panel._shown.layout.display == "none"
    assert panel.frame.empty
    assert panel.channels.empty
    assert panel.figure is None
    assert repr(panel) == "RangesPanel(nothing calibrated yet)"


def test_it_fills_itself_when_ranges_arrive(ranges):
    state = BenchState()
    panel = RangesPanel(state=state)
    state.calibration = Calibration("c", ranges)
    assert panel.place == HOT
    assert panel._shown.layout.display is None
    assert len(panel.frame) == 22


def test_other_ranges_beside_it(ranges):
    panel = RangesPanel(ranges, against=make_ranges(SMALL, scale=2.0, windows=8))
    panel.settle()
    assert panel.shows == "ratio"
    assert panel._shows.layout.display == ""
    assert panel._cells.label == "words, 8 x 512 tokens / as calibrated, largest magnitude"
    assert panel._cells.label in panel._scale.value
    assert panel.frame.set_index("place").loc[COOL, ["absmax", "absmax_other"]].tolist() == pytest.approx(
        [1.25, 2.5], rel=0.02
    )
    assert len(panel._maxima.chart.marks) == 3
    assert "<th>other</th>" in panel._table.value
    panel._shows.value = "other"
    assert "words, 8 x 512" not in panel._scale.value
    panel._compare.value = ""
    assert panel.shows == "this"
    assert panel._shows.layout.display == "none"
    assert "absmax_other" not in panel.frame


def test_smoothing_moves_with_the_recipe(bench):
    panel = RangesPanel(state=bench)
    panel._compare.value = "smoothing"
    panel.settle()
    assert [name for name, _ in panel._shows.options] == ["before", "after", "after / before"]
    assert "<th>after</th>" in panel._table.value
    assert "no histogram afterwards" in panel._about.value
    first = panel.frame.set_index("place")["absmax_other"][HOT]
    assert first < panel.frame.set_index("place")["absmax"][HOT]
    bench.set_alpha(0.2)
    panel.settle()
    assert panel.frame.set_index("place")["absmax_other"][HOT] > first
    assert panel.status == ""


def test_a_recipe_without_smoothing_says_so(bench):
    bench.recipe = Recipe()
    panel = RangesPanel(state=bench)
    panel.compare = "smoothing"
    panel.settle()
    assert "The recipe smooths nothing" in panel.status
    bench.set_alpha(0.5)
    panel.settle()
    assert panel.status == ""


def test_waiting_for_a_calibration_has_an_end(ranges_bench):
    bench = ranges_bench()
    bench.hold.clear()
    panel = RangesPanel(state=bench)
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.1 s"):
        panel.settle(0.1)
    panel._box.job.stop()
    panel.settle()
    assert panel.frame.empty


def test_a_second_calibration_beside_it(bench):
    name = "words, 16 x 512 tokens, float32"
    panel = RangesPanel(state=bench, against=name)
    panel.settle()
    assert panel.compare == f"data:{name}"
    assert name in repr(panel)
    with pytest.raises(
        WorkbenchError, match=r"nothing to compare with is called 'word'; allowed: smoothing, words, 16"
    ):
        RangesPanel(state=bench, against="word")


def test_a_calibration_that_is_gone_is_an_error_in_the_panel(bench):
    name = "words, 16 x 512 tokens, float32"
    panel = RangesPanel(state=bench)
    folder = bench.calibrations()[name]
    (folder / "ranges.safetensors").unlink()
    panel._compare.value = f"data:{name}"
    panel.settle()
    assert (
        "calibration &#x27;words, 16 x 512 tokens, float32&#x27; is gone; choose another, or calibrate again"
        in panel.status
    )
    panel._compare.value = "smoothing"
    panel.settle()
    assert panel.status == ""


def test_another_calibration_keeps_what_is_looked_at(bench):
    panel = RangesPanel(state=bench)
    panel._cells.selected = cell_of(panel, COOL)
    bench.use_calibration(bench.calibrations()["words, 16 x 512 tokens, float32"])
    assert panel.place == COOL
    assert "words, 16 x 512" in panel._head.value
    assert "quick look" not in panel._head.value
    assert "data:words, 128 x 512 tokens, float32" in dict(panel._compare.options).values()


def test_an_empty_bench_is_given_a_quick_look(ranges_bench):
    bench = ranges_bench()
    bench.hold.clear()
    panel = RangesPanel(state=bench)
    again = RangesPanel(state=bench)
    assert "Nothing is calibrated yet. A quick look at 8 windows of 256 tokens" in panel._head.value
    assert panel._calibrate.selected_index == 0
    assert again._box.job is panel._box.job
    assert bench.jobs.running is panel._box.job
    bench.hold.set()
    panel.settle(10)
    assert panel.place == again.place != ""
    assert panel._calibrate.selected_index is None
    assert "This is a quick look" not in panel._head.value  # these ranges claim 8 x 512 tokens


def test_a_quick_look_says_that_it_is_one(bench, keep_ranges):
    bench.use_calibration(keep_ranges(bench, windows=4))
    panel = RangesPanel(state=bench)
    assert "This is a quick look" in panel._head.value
    assert "press its button" in panel._head.value


def test_a_failing_callback_shows_in_the_panel(panel, monkeypatch):
    def broken(_place, _seen):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(ranges_panel, "close_up", broken)
    panel._cells.selected = cell_of(panel, COOL)
    assert "RuntimeError: no &lt;ink&gt;. Choose something else" in panel.status
    monkeypatch.undo()
    panel._cells.selected = cell_of(panel, HOT)
    assert panel._state.selected == "layers.1.mlp.down"
    assert panel.status == ""


def test_what_is_shown_is_at_hand(panel):
    assert {"place", "layer", "site", "absmax", "p99_99", "outlier_ratio", "top_channel"} <= set(panel.frame)
    assert panel.channels["channel"][0] == 3
    assert [axes.get_ylabel() for axes in panel.figure.axes][2:] == ["values per octave", "largest magnitude"]


def test_places_without_widgets_get_a_picture(panel):
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(panel)


def test_smoothing_says_its_layers_and_ends_when_it_is_not_wanted(bench, monkeypatch):
    reached, go_on, ended = threading.Event(), threading.Event(), []

    def smoothed_ranges(report):
        for layer in (1, 2):
            try:
                report(ProgressEvent("smooth", layer, 2, "layers"))
            except Cancelled:
                ended.append(layer)
                raise
            reached.set()
            assert go_on.wait(10)
        return bench.calibration.ranges

    monkeypatch.setattr(bench, "smoothed_ranges", smoothed_ranges)
    panel = RangesPanel(state=bench)
    panel.compare = "smoothing"
    assert reached.wait(10)
    assert "smoothing: layer 1 of 2" in panel.status
    panel.compare = ""
    assert panel.status == ""
    go_on.set()
    panel.settle()
    assert ended == [2]
    assert (panel.status, panel._other) == ("", None)
    reached.clear()
    go_on.clear()
    panel.compare = "smoothing"
    assert reached.wait(10)
    bench.set_alpha(0.3)  # another recipe: what is under way ends, and it is done anew
    go_on.set()
    panel.settle()
    assert ended == [2, 2]
    assert panel._other is not None
