"""The panel through its traits, without a browser; tests/notebooks drives it in one."""

from __future__ import annotations

import base64
import threading
from dataclasses import replace

import numpy as np
import pytest
import traitlets

import workbench
from workbench.bench.job import JobQueue
from workbench.errors import WorkbenchError
from workbench.model.taps import LAYER_SITES
from workbench.progress import ProgressEvent
from workbench.ui import layer_diff_panel
from workbench.ui.layer_diff_panel import LayerDiffPanel


class _State(traitlets.HasTraits):
    """As much of a bench's state as the panel knows."""

    selected = traitlets.Unicode("")

    def __init__(self) -> None:
        super().__init__()
        self.jobs = JobQueue()


@pytest.fixture
def panel(make_diff):
    return LayerDiffPanel(make_diff(spoil={"layers.1.attention.o": 5e-3}))


def _cell(site, layer):
    return [list(LAYER_SITES).index(site), layer]


def test_it_is_where_the_manual_says():
    assert workbench.ui.LayerDiffPanel is LayerDiffPanel
    with pytest.raises(AttributeError, match="no attribute 'LayerDifPanel'"):
        _ = workbench.ui.LayerDifPanel


def test_it_opens_on_the_worst_tap(panel):
    assert panel.selected == "layers.1.attention.o"
    assert panel._map.selected == _cell("attention.o", 1)
    assert "layers.1.attention.o" in panel.description
    assert panel.status == ""
    assert set(panel._map.marks) == {""}


def test_buttons_lead_to_the_worst_taps_in_turn(make_diff):
    panel = LayerDiffPanel(make_diff(spoil={"layers.0.mlp.down": 0.02, "layers.1.mlp.down": 0.5}))
    errors = panel.frame.set_index("tap")["relative_l2"]
    assert panel.ranked == list(errors.sort_values(ascending=False, kind="stable").index)
    panel._worst.click()
    assert panel.selected == panel.ranked[0] == "layers.1.mlp.down"
    for place in (1, 2):
        panel._next_worst.click()
        assert panel.selected == panel.ranked[place]
    panel._first.click()
    assert panel.selected == "layers.0.mlp.down"
    panel.selected = panel.ranked[-1]
    assert panel._next_worst.disabled
    panel.metric = "snr_db"
    ratios = panel.frame.set_index("tap")["snr_db"]
    assert ratios[panel.ranked[0]] == ratios.min()
    panel.metric = "cosine"
    cosines = panel.frame.set_index("tap")["cosine"]
    assert cosines[panel.ranked[0]] == cosines.min()


def test_without_a_divergence_there_is_nothing_to_jump_to(panel):
    assert panel.diff.first_divergence is None
    assert panel._first.disabled
    panel._worst.click()
    assert panel.selected == "layers.1.attention.o"


def test_it_opens_on_the_first_divergence_and_marks_it(make_diff):
    panel = LayerDiffPanel(make_diff(spoil={"layers.0.mlp.down": 0.02, "layers.1.mlp.down": 0.5}))
    assert panel.selected == "layers.0.mlp.down"
    row, column = _cell("mlp.down", 0)
    assert panel._map.marks.index("dot") == row * 2 + column
    assert panel._map.marks.count("dot") == 1
    assert panel._map.texts[row * 2 + column].endswith("the first divergence")
    assert "first divergence" in panel._scale.value
    assert any(getattr(mark, "label", "") == "first divergence: mlp.down" for mark in panel._depth.chart.marks)


def test_a_click_on_the_map_shows_another_tap(panel):
    panel._map.selected = _cell("mlp.down", 0)
    assert panel.selected == "layers.0.mlp.down"
    assert panel._names.value == "layers.0.mlp.down"
    assert panel._values.chart.title == "layers.0.mlp.down: 100 of its values"
    assert "layers.0.mlp.down" in panel._tokens.chart.title
    mark, index = panel._depth.selected
    assert panel._depth.chart.marks[mark].label == "mlp.down"
    assert index == 0


def test_a_click_on_a_line_shows_that_tap(panel):
    labels = [mark.label for mark in panel._depth.chart.marks]
    panel._depth.selected = [labels.index("attention.qkv"), 1]
    assert panel.selected == "layers.1.attention.qkv"
    assert panel._map.selected == _cell("attention.qkv", 1)


def test_a_tap_of_the_whole_model_leaves_no_cell_marked(panel):
    panel._names.value = "logits"
    assert panel.selected == "logits"
    assert panel._map.selected == [-1, -1]
    assert panel._depth.selected == [-1, -1]
    assert "<b>logits</b>" in panel.description


def test_the_words_have_every_metric(panel):
    panel.selected = "layers.0.mlp.act"
    row = panel.frame.set_index("tap").loc["layers.0.mlp.act"]
    assert f"relative L2 error {row['relative_l2']:.3g}" in panel.description
    assert f"signal to noise [dB] {row['snr_db']:.1f}" in panel.description
    assert f"cosine {row['cosine']:.6f}" in panel.description
    assert f"largest absolute error {row['max_abs']:.3g}" in panel.description


def test_another_metric_colours_the_map_anew(panel):
    colors, texts = panel._map.colors, panel._map.texts
    panel._metrics.value = "snr_db"
    assert panel.metric == "snr_db"
    assert panel._map.label == "signal to noise [dB]"
    assert panel._map.texts != texts
    assert "(worst)" in panel._scale.value
    panel.metric = "relative_l2"
    assert panel._metrics.value == "relative_l2"
    assert panel._map.colors == colors


def test_the_worst_cell_is_the_brightest(panel):
    colors = panel._map.colors
    row, column = _cell("attention.o", 1)
    assert colors[row * 2 + column] == "#fde725"
    assert colors.count("#fde725") == 1


def test_an_unknown_metric_is_refused(panel):
    with pytest.raises(WorkbenchError, match="metric 'snr'; allowed: relative_l2, cosine"):
        panel.metric = "snr"


def test_an_unknown_tap_says_what_to_do(panel):
    panel.selected = "layers.0.mlp"
    assert "was not compared; choose one of the frame" in panel.status
    assert panel._values.chart is None
    assert panel.description == ""
    panel.selected = "layers.0.mlp.act"
    assert panel.status == ""


def test_a_failing_callback_shows_in_the_panel(panel, monkeypatch):
    def broken(_diff, _tap):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(layer_diff_panel, "value_chart", broken)
    panel._map.selected = _cell("mlp.down", 0)
    assert "RuntimeError: no &lt;ink&gt;. Choose something else" in panel.status
    monkeypatch.undo()
    panel._map.selected = _cell("mlp.down", 1)
    assert "layers.1.mlp.down" in panel.description


def test_places_without_widgets_get_a_picture(panel):
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == repr(panel)
    assert "selected='layers.1.attention.o'" in repr(panel)


def test_a_perfect_match_has_no_scale(make_diff):
    diff = make_diff(spoil=dict.fromkeys(make_diff().frame["tap"], 0.0))
    panel = LayerDiffPanel(diff)
    assert "every cell is exact" in panel._scale.value
    assert "infinite (exact)" in panel.description


def test_another_difference_is_shown_at_the_same_tap(panel, make_diff):
    panel.selected = "layers.0.mlp.act"
    panel.diff = make_diff(layers=3)
    assert panel.selected == "layers.0.mlp.act"
    assert panel._map.columns == ["0", "1", "2"]
    panel.selected = "layers.2.mlp.act"
    panel.diff = make_diff(layers=2)
    assert panel.selected in set(panel.frame["tap"])
    assert len(panel._map.colors) == 2 * len(LAYER_SITES)


# ---- tokens


def test_the_tokens_of_a_window(panel):
    box = panel._tokens
    assert box._text.texts == list("abcde")
    assert box._chart.chart.marks[0].texts[4].startswith("token 4: e\n")
    assert box._text.bars[4] == "#fde725"
    box._windows.value = 1
    assert panel.window == 1
    assert box._text.texts == list("fghij")
    panel.window = 0
    assert box._windows.value == 0
    assert box._text.texts == list("abcde")


def test_a_click_on_a_token_marks_it_in_text_and_chart(panel):
    box = panel._tokens
    box._text.selected = 2
    assert (box.position, box._chart.selected) == (2, [0, 2])
    assert "token 2 <b>c</b>" in box._note.value
    box._chart.selected = [0, 4]
    assert (box.position, box._text.selected) == (4, 4)
    panel.selected = "layers.0.mlp.act"
    assert box._chart.selected == [0, 4]


def test_the_worst_tokens_stand_with_their_neighbours(panel):
    worst = panel.worst_tokens
    assert {(row.text, row.before) for row in worst.head(2).itertuples()} == {("e", "abcd"), ("j", "fghi")}
    assert worst["relative_l2"].is_monotonic_decreasing
    assert 'abcd<span class="wb-here">e</span>' in panel._tokens._table.value


def test_no_such_window(panel):
    with pytest.raises(WorkbenchError, match="window 2; allowed: 0 to 1"):
        panel.window = 2


def test_a_difference_without_tokens_shows_none(make_diff):
    diff = make_diff()
    bare = replace(diff, per_token=replace(diff.per_token, ids=diff.per_token.ids[:0], by_tap={}, texts=()))
    panel = LayerDiffPanel(bare)
    assert panel._tokens.layout.display == "none"
    panel.diff = diff
    assert panel._tokens.layout.display == ""
    assert panel._tokens._text.texts == list("abcde")


def test_texts_of_a_model_stay_text(make_diff):
    diff = make_diff()
    texts = (("<b>", "\n", " x", "d", "&"), tuple("fghij"))
    panel = LayerDiffPanel(replace(diff, per_token=replace(diff.per_token, texts=texts)))
    assert '<span class="wb-here">&lt;b&gt;</span>' in panel._tokens._table.value
    assert panel._tokens._text.texts[1] == "↵\n"


# ---- a state that is shared


def test_the_chosen_linear_layer_is_the_bench_s(make_diff):
    state = _State()
    one, other = LayerDiffPanel(make_diff(), state=state), LayerDiffPanel(make_diff(), state=state)
    one.selected = "layers.1.mlp.down"
    assert state.selected == other.selected == "layers.1.mlp.down"
    one.selected = "layers.0.mlp.act"
    assert state.selected == "layers.1.mlp.down"
    state.selected = "layers.0.attention.o"
    assert one.selected == other.selected == "layers.0.attention.o"
    state.selected = "layers.99.attention.o"
    assert one.selected == "layers.0.attention.o"
    one.close()
    state.selected = "layers.1.attention.o"
    assert one.selected == "layers.0.attention.o"


# ---- float64


def test_a_rerun_in_float64_brings_its_verdict(make_diff):
    asked = []

    def rerun(diff, report):
        report(ProgressEvent("compare in float64", 1, 1, "runs"))
        asked.append(diff)
        return diff.with_float64(make_diff(spoil=dict.fromkeys(diff.frame["tap"], 0.0)))

    diff = make_diff()
    panel = LayerDiffPanel(diff, rerun=rerun)
    panel._job.start_button.click()
    panel._job.job.wait(10)
    assert asked == [diff]
    assert "every difference is rounding" in panel._verdict.value
    assert "in float64 0<" in panel.description
    assert np.all(panel.frame["float64"] == 0)


def test_a_rerun_can_be_stopped(make_diff):
    begun, going = threading.Event(), threading.Event()

    def rerun(diff, report):
        begun.set()
        going.wait(10)
        report(ProgressEvent("compare in float64", 1, 2, "runs"))
        return diff.with_float64(diff)

    panel = LayerDiffPanel(make_diff(), rerun=rerun)
    panel._job.start_button.click()
    assert begun.wait(10)
    panel._job.stop_button.click()
    panel._job.stop_button.click()
    going.set()
    panel._job.job.wait(10)
    assert panel._job.job.state == "stopped"
    assert panel.diff.verdict == ""


def test_without_models_there_is_no_rerun(panel):
    assert panel._job is None
