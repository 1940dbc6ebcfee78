"""The panel's long work while a person goes elsewhere."""

from __future__ import annotations

import threading
import time

from workbench.bench.state import BenchState, Calibration
from workbench.quantization.kv_error import DEFAULT_PERCENTILES, KVStudy
from workbench.ui.kv_scales_panel import KVScalesPanel

SECONDS = 20


def test_a_layer_that_a_person_comes_straight_back_to_is_finished(random_kv_study, monkeypatch):
    """Its curve had begun and ended when another layer was asked for, whose errors were not shown in time."""
    begun, go_on, shown = threading.Event(), threading.Event(), threading.Event()
    elsewhere = []
    error = KVStudy.error

    def slow(self, layer, how, *divisor):
        if layer in elsewhere:
            shown.wait(SECONDS)
        elif how.percentile == DEFAULT_PERCENTILES[0]:
            begun.set()
            go_on.wait(SECONDS)
        return error(self, layer, how, *divisor)

    monkeypatch.setattr(KVStudy, "error", slow)
    state = BenchState(calibration=Calibration("words", random_kv_study.ranges), kv_study=random_kv_study)
    panel = KVScalesPanel(state=state)
    assert begun.wait(SECONDS)
    here = panel.layer
    elsewhere.append(1 - here)
    panel.layer = 1 - here
    go_on.set()
    end = time.monotonic() + SECONDS
    while panel._workers["rest"].busy and time.monotonic() < end:
        time.sleep(0.01)
    panel.layer = here
    shown.set()
    panel.settle()
    assert panel.status == ""
    assert set(panel.curve.percentiles) == set(DEFAULT_PERCENTILES)
    assert panel.frame["error_per_head"].notna().all()
