"""The panel through its traits, without a browser; tests/notebooks drives it in one."""

from __future__ import annotations

import base64

import pytest

import workbench
from workbench.errors import WorkbenchError
from workbench.model.taps import LAYER_SITES
from workbench.ui import layer_diff_panel
from workbench.ui.layer_diff_panel import LayerDiffPanel


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
    assert "layers.1.attention.o" in panel.status


def test_it_opens_on_the_first_divergence(make_diff):
    panel = LayerDiffPanel(make_diff(spoil={"layers.0.mlp.down": 0.02, "layers.1.mlp.down": 0.5}))
    assert panel.selected == "layers.0.mlp.down"


def test_a_click_draws_another_tap(panel):
    before = bytes(panel._image.value)
    panel._map.selected = _cell("mlp.down", 0)
    assert panel.selected == "layers.0.mlp.down"
    assert panel._names.value == "layers.0.mlp.down"
    assert "layers.0.mlp.down" in panel.figure.get_suptitle()
    assert bytes(panel._image.value).startswith(b"\x89PNG")
    assert bytes(panel._image.value) != before
    assert panel._image.alt == "Scatter and error histogram of layers.0.mlp.down"


def test_a_tap_of_the_whole_model_leaves_no_cell_marked(panel):
    panel._names.value = "logits"
    assert panel.selected == "logits"
    assert panel._map.selected == [-1, -1]
    assert "<b>logits</b>" in panel.status


def test_the_status_line_has_every_metric(panel):
    panel.selected = "layers.0.mlp.act"
    row = panel.frame.set_index("tap").loc["layers.0.mlp.act"]
    assert f"relative L2 error {row['relative_l2']:.2e}" in panel.status
    assert f"signal to noise [dB] {row['snr_db']:.1f}" in panel.status
    assert f"cosine {row['cosine']:.6f}" in panel.status
    assert f"largest absolute error {row['max_abs']:.2e}" in panel.status


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
    assert panel.figure is None
    assert panel._image.value == b""


def test_a_failing_callback_shows_in_the_panel(panel, monkeypatch):
    def broken(_diff, _tap):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(layer_diff_panel, "plot_tap", broken)
    panel._map.selected = _cell("mlp.down", 0)
    assert "RuntimeError: no &lt;ink&gt;. Choose another tap, or run the cell again" in panel.status
    monkeypatch.undo()
    panel._map.selected = _cell("mlp.down", 1)
    assert "layers.1.mlp.down" in panel.status


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
    assert "infinite (exact)" in panel.status
