"""The panel through its traits, without a browser."""

from __future__ import annotations

import base64
import re
import threading
from dataclasses import replace

import pytest
from hand_made_ranges import make_ranges

import workbench
from workbench.bench.bench import QUICK_LOOK
from workbench.bench.state import BenchState, Calibration
from workbench.errors import CheckpointError, WorkbenchError
from workbench.quantization.kv_error import DEFAULT_PERCENTILES, KVStudy
from workbench.recipe import Int8KVCache, Recipe, SmoothQuant
from workbench.ui import kv_scales_panel
from workbench.ui.kv_scales_panel import KVScalesPanel
from workbench.ui.kv_view import ALL_HEADS, DENSE

SECONDS = 20


@pytest.fixture
def state(random_kv_study):
    return BenchState(calibration=Calibration("words", random_kv_study.ranges), kv_study=random_kv_study)


@pytest.fixture
def panel(state):
    panel = KVScalesPanel(state=state)
    panel.settle()
    return panel


@pytest.fixture
def bench(kv_bench, keep_ranges):
    """It has been calibrated."""
    kv_bench.use_calibration(keep_ranges(kv_bench))
    return kv_bench


def marked(chart):
    """The labels of a chart's legend."""
    return [mark.label for mark in chart.marks]


def test_it_is_where_the_manual_says():
    assert workbench.ui.KVScalesPanel is KVScalesPanel


def test_it_opens_with_everything_known(panel, random_kv_study):
    assert panel.status == ""
    assert panel.view.stored.value == DENSE
    assert "stores keys and values in float16" in panel.view.choice_note.value
    assert panel.error.relative_l2 == random_kv_study.error(panel.layer, Int8KVCache()).relative_l2
    assert set(panel.curve.percentiles) == set(DEFAULT_PERCENTILES)
    assert panel.frame[["error_per_head", "error_per_tensor"]].notna().all(axis=None)
    assert "All layers, per head: median" in panel.view.layers_note.value
    assert "2 held-out windows of 12 tokens" in panel.view.errors_note.value
    assert repr(panel).startswith(f"KVScalesPanel(not quantized; layer {panel.layer} errs by ")
    assert "being computed" not in panel.view.curve.chart.title


def test_choices_go_into_the_recipe_and_back(panel, state):
    panel.view.stored.value = "per_tensor"
    assert state.recipe.kv_cache == Int8KVCache("per_tensor", 100.0)
    panel.view.slider.value = 99.5
    assert state.recipe.kv_cache == Int8KVCache("per_tensor", 99.5)
    assert panel.view.field.value == 99.5
    panel.settle()
    assert "INT8 per tensor at 99.5 %" in panel.view.layer_note.value
    assert panel.view.choice_note.value == ""
    panel.view.field.value = 80.0
    assert (panel.view.slider.value, panel.view.slider.min) == (99.0, 99.0)
    assert state.recipe.kv_cache.percentile == 80.0
    panel.view.stored.value = DENSE
    assert state.recipe.kv_cache is None
    state.recipe = Recipe(kv_cache=Int8KVCache("per_head", 99.9))
    assert (panel.view.stored.value, panel.view.slider.value) == ("per_head", 99.9)
    state.undo()
    assert panel.view.stored.value == DENSE
    assert panel.choice == Int8KVCache("per_head", 99.9)  # what is shown while nothing is chosen
    assert panel.status == ""


def test_opening_a_panel_changes_no_choice(state):
    state.recipe = Recipe(kv_cache=Int8KVCache("per_tensor", 97.1234))
    before = state.recipe, state.undo_steps, state.selected
    panel = KVScalesPanel(state=state)
    panel.settle()
    assert (state.recipe, state.undo_steps, state.selected) == before
    assert panel.view.field.value == 97.1234


def test_a_slider_on_its_way_is_one_step_to_undo(panel, state):
    for percentile in (99.9, 99.8, 99.7):
        panel.view.slider.value = percentile
    assert state.undo_steps == 1
    panel.settle()
    assert "99.7 %" in panel.view.depth.chart.title
    assert panel.error.relative_l2 == panel.curve.errors[panel.curve.percentiles.index(99.7)].relative_l2


def test_a_cell_shows_its_layer_and_head(panel, state):
    panel.view.maps.cells["value"].selected = [1, 0]
    assert (panel.layer, panel.head) == (0, 1)
    assert state.selected == "layers.0.attention.value"
    assert panel.view.maps.cells["key"].selected == [1, 0]
    assert (panel.view.layer.value, panel.view.head.value) == (0, 1)
    panel.settle()
    assert "KV head 1" in panel.view.magnitudes.chart.title
    panel.view.head.value = ALL_HEADS
    assert "all heads" in panel.view.magnitudes.chart.title
    assert panel.view.maps.cells["key"].selected == [-1, -1]


def test_clicks_on_charts_choose(panel, state):
    panel.view.depth.selected = [0, 0]
    assert panel.layer == 0
    panel.settle()
    names = marked(panel.view.curve.chart)
    panel.view.curve.selected = [names.index("per tensor"), DEFAULT_PERCENTILES.index(99.5)]
    assert state.recipe.kv_cache == Int8KVCache("per_tensor", 99.5)
    panel.settle()
    panel.view.heads.selected = [0, 1]
    assert panel.head == 1
    panel.view.heads.selected = [0, 1]
    assert panel.head == ALL_HEADS
    panel.view.depth.selected = [2, 0]  # the point that marks the choice is no choice
    assert panel.layer == 0
    assert panel.status == ""


def test_two_panels_of_one_state_follow_each_other(panel, state):
    other = KVScalesPanel(state=state)
    other.layer = 0
    assert panel.layer == 0
    panel.view.stored.value = "per_head"
    assert other.view.stored.value == "per_head"
    state.selected = "layers.1.mlp.down"
    assert panel.layer == other.layer == 1
    state.selected = "lm_head"
    assert panel.layer == 1
    panel.settle()
    other.settle()
    assert panel.view.layer_note.value == other.view.layer_note.value


def test_layers_and_heads_that_are_not_there_are_refused(panel):
    with pytest.raises(WorkbenchError, match="there is no layer 2; allowed: 0 to 1"):
        panel.layer = 2
    with pytest.raises(WorkbenchError, match="there is no head 99; allowed: -1 to "):
        panel.head = 99
    with pytest.raises(WorkbenchError, match="there is no layer 1; allowed: none before a model is calibrated"):
        KVScalesPanel().layer = 1
    with pytest.raises(TypeError, match="not both"):
        KVScalesPanel(object(), state=BenchState())


def test_nothing_calibrated_says_what_to_do():
    panel = KVScalesPanel()
    assert "KVScalesPanel(study)" in panel.view.missing.value
    assert panel.view.controls.layout.display == panel.view.maps.layout.display == "none"
    assert panel.view.errors.layout.display == "none"
    assert panel.frame.empty
    assert (panel.figure, panel.error, panel.curve, panel.memory) == (None, None, None, None)
    assert repr(panel) == "KVScalesPanel(nothing calibrated yet)"


def test_it_fills_itself_in_two_steps(random_kv_study):
    state = BenchState()
    panel = KVScalesPanel(state=state)
    state.calibration = Calibration("words", random_kv_study.ranges)
    assert panel.view.maps.layout.display == ""
    assert panel.view.errors.layout.display == "none"
    assert "No errors to show" in panel.view.missing.value
    assert panel.frame["error_per_head"].isna().all()
    assert len(panel.figure.axes) == 1
    state.kv_study = random_kv_study
    panel.settle()
    assert panel.view.missing.value == ""
    assert panel.view.errors.layout.display == ""
    assert len(panel.figure.axes) == 4


def test_a_study_alone(random_kv_study):
    panel = KVScalesPanel(random_kv_study)
    panel.settle()
    assert panel.error is not None
    assert panel.memory.saved_bytes_per_token > 0
    assert "a full cache: 20,480 tokens" in panel.view.memory.value


def test_smoothing_of_o_moves_the_errors(state, panel, random_search):
    plain = panel.error.relative_l2
    state.recipe = Recipe(weights=SmoothQuant(alpha=0.9))
    panel.settle()
    assert panel.error.relative_l2 == plain
    assert "judged without the recipe's smoothing of o" in panel.view.layer_note.value
    state.search = random_search
    panel.settle()
    assert panel.error.relative_l2 != plain
    assert "divided as the recipe's smoothing" in panel.view.layer_note.value


def test_ranges_without_histograms_offer_no_percentile(random_kv_study):
    ranges = make_ranges(random_kv_study.config, fingerprint=random_kv_study.inputs.model_fingerprint)
    bare = type(ranges)(ranges.source, ranges.inputs, ranges.outputs, ranges.keys, ranges.values)
    panel = KVScalesPanel(KVStudy(random_kv_study.config, random_kv_study.inputs.file.path, bare))
    panel.settle()
    assert panel.view.slider.disabled
    assert panel.view.field.disabled
    assert "kept no histograms" in panel.view.choice_note.value
    assert panel.status == ""
    assert panel.curve.percentiles == (100.0,)
    panel.state.set_kv_cache(Int8KVCache("per_head", 99.0))
    panel.settle()
    assert "histogram" in panel.status
    panel.state.undo()
    panel.settle()
    assert panel.status == ""


def test_an_error_in_a_callback_shows_in_the_panel(panel, monkeypatch):
    def broken(*_args):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(kv_scales_panel, "charts_of", broken)
    panel.view.layer.value = 1 - panel.layer
    panel.settle()
    assert "RuntimeError: no &lt;ink&gt;. Choose something else" in panel.status
    monkeypatch.undo()
    panel.view.layer.value = 1 - panel.layer
    panel.settle()
    assert panel.status == ""


def test_a_file_that_is_gone_shows_in_the_panel(panel, monkeypatch):
    def gone(*_args):
        raise CheckpointError("attention_inputs.safetensors is gone", fix="press Start again")

    monkeypatch.setattr(panel.state.kv_study, "error", gone)
    panel.view.slider.value = 99.42
    panel.settle()
    assert "is gone; press Start again" in panel.status


def test_a_closed_panel_follows_no_more_and_computes_no_more(state, monkeypatch):
    started, goes_on = threading.Event(), threading.Event()
    error = state.kv_study.error
    asked = []

    def slow(*arguments):
        asked.append(arguments)
        started.set()
        assert goes_on.wait(SECONDS)
        return error(*arguments)

    monkeypatch.setattr(state.kv_study, "error", slow)
    panel = KVScalesPanel(state=state)
    assert started.wait(SECONDS)
    panel.close()
    panel.close()
    goes_on.set()
    panel.settle()
    assert len(asked) == 1
    state.set_kv_cache(Int8KVCache())
    assert panel.view.stored.value == DENSE


def test_a_bench_collects_what_is_missing(bench):
    bench.hold.clear()
    panel, again = KVScalesPanel(state=bench), KVScalesPanel(state=bench)
    assert panel.view.study.job is again.view.study.job
    assert "No errors yet" in panel.view.missing.value
    assert panel.view.maps.layout.display == ""
    assert panel.memory.tokens == 20_480
    bench.hold.set()
    panel.view.study.job.wait(SECONDS)
    panel.settle()
    again.settle()
    assert panel.view.study.children == again.view.study.children == ()
    assert panel.error is not None
    assert bench.made == 1


def test_another_calibration_is_studied_anew(bench, keep_ranges):
    panel = KVScalesPanel(state=bench)
    panel.view.study.job.wait(SECONDS)
    first = bench.kv_study
    bench.use_calibration(keep_ranges(bench, windows=32))
    panel.view.study.job.wait(SECONDS)
    panel.settle()
    assert bench.kv_study is not first
    assert bench.made == 2
    assert panel.error is not None


def test_an_kv_bench_is_given_a_quick_look_and_then_the_study(kv_bench):
    kv_bench.hold.clear()
    panel = KVScalesPanel(state=kv_bench)
    assert "A quick look at 8 windows of 256 tokens comes first" in panel.view.missing.value
    assert panel.view.study.job.title == kv_bench.calibrate(QUICK_LOOK).title
    kv_bench.hold.set()
    panel.settle(SECONDS)
    assert panel.view.study.job.title == "collect attention's inputs"
    assert panel.error is not None
    assert panel.view.study.children == ()


def test_places_without_widgets_get_a_picture(panel):
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(panel)


def test_a_picture_of_another_layer_takes_no_curves(panel):
    panel.layer = 0
    panel.settle()
    wanted, first = panel._now, panel._picture
    panel.layer = 1
    panel.settle()
    with panel.showing():
        panel.layer = 0  # a person came back: what is drawn is the other layer's yet
    assert wanted == panel._now
    before = panel._picture
    panel._show_known(wanted)
    assert panel._picture is before
    assert before.layer != first.layer


@pytest.fixture
def spoiled(state, spoiling_search):
    """A panel whose recipe's smoothing spoils layer 1."""
    state.search = spoiling_search
    state.recipe = Recipe(weights=SmoothQuant(), kv_cache=Int8KVCache("per_head"))
    panel = KVScalesPanel(state=state)
    panel.settle()
    return panel


def test_a_layer_that_smoothing_spoils_is_named_and_the_advice_mends_it(spoiled, state):
    text = spoiled.view.warning.value
    assert "INT8 spoils layer 1:" in text
    assert "Smoothing of o is the cause" in text
    (alpha,) = re.findall(r"bench\.set_alpha\(([\d.]+), &quot;layers\.1\.o&quot;\)", text)
    assert spoiled.status == ""
    state.set_alpha(float(alpha), "layers.1.o")
    spoiled.settle()
    assert spoiled.view.warning.value == ""


def test_a_locked_group_is_to_be_unlocked_first(spoiled, state):
    for change, said in ((state.lock, True), (state.unlock, False)):
        change("layers.1.o")
        spoiled.settle()
        assert ("bench.unlock(&quot;layers.1.o&quot;)" in spoiled.view.warning.value) == said


def test_an_o_that_is_kept_costs_nothing(spoiled, state):
    assert "o's own output, quantized, by" in spoiled.view.warning.value
    state.recipe = replace(state.recipe, keep=("lm_head", "layers.1.attention.o"))
    spoiled.settle()
    assert "layers.1.o" in spoiled.view.warning.value
    assert "o's own output" not in spoiled.view.warning.value


def test_the_values_are_not_drawn_by_two_threads_at_once(spoiled):
    cells, after = spoiled.view.maps.cells["value"], spoiled.view.maps.after
    before = cells.texts
    toggled = threading.Thread(target=lambda: setattr(after, "value", True))
    with spoiled.drawing:  # as the thread that draws what is computed
        toggled.start()
        toggled.join(0.2)
        assert toggled.is_alive()
        assert cells.texts == before
    toggled.join(SECONDS)
    assert cells.texts != before
    assert "after smoothing" in cells.label


def test_values_after_smoothing_are_offered_where_the_recipe_smooths(state, random_search):
    state.search, state.recipe = random_search, Recipe(weights=SmoothQuant())
    panel = KVScalesPanel(state=state)
    panel.settle()
    assert panel.view.maps.after.layout.display == ""
    assert panel.frame["value_smoothed"].notna().all()
    state.recipe = Recipe()
    panel.settle()
    assert panel.view.maps.after.layout.display == "none"


def test_a_word_beside_the_percentile_moves_nothing(panel):
    assert panel.view.field.note.layout.flex == "0 0 110px"
    panel.view.field.value = 0
    assert "50 is the least" in panel.view.field.note.value
