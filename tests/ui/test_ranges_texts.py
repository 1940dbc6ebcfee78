from __future__ import annotations

import numpy as np
import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.bench.state import Calibration
from workbench.ui.ranges_charts import Seen
from workbench.ui.ranges_texts import button_names, describe, heading, outliers_table


@pytest.fixture(scope="module")
def seen():
    return Seen.of("as <calibrated>", make_ranges(SMALL, spoil={"lm_head.input": 50.0}))


@pytest.mark.parametrize(
    ("windows", "on_bench", "quick"), [(4, True, True), (4, False, False), (5, True, False), (128, True, False)]
)
def test_a_quick_look_is_called_one_where_more_can_be_had(windows, on_bench, quick):
    text = heading(Calibration("c", make_ranges(SMALL, windows=windows)), on_bench=on_bench)
    assert f"words, {windows} x 512 tokens" in text
    assert ("This is a quick look" in text) == quick


def test_nothing_yet_says_what_to_do():
    assert "press Calibrate below" in heading(None, on_bench=True)
    assert "RangesPanel(ActivationRanges.load(folder))" in heading(None, on_bench=False)


def test_buttons_are_called_what_is_compared():
    assert button_names("smoothing") == [("before", "this"), ("after", "other"), ("after / before", "ratio")]
    assert [name for name, _ in button_names("data:x")] == ["this", "other", "other / this"]


def test_a_place_in_one_sentence(seen):
    text = describe([seen], "lm_head.input")
    assert text.startswith("as &lt;calibrated&gt;: largest magnitude ")
    assert "largest channel / median channel" in text
    after = Seen.of("after smoothing", make_ranges(SMALL))
    assert "no histogram" not in describe([seen, after], "lm_head.input")


def test_the_largest_channels_as_a_table(seen):
    table = outliers_table([seen], "lm_head.input")
    assert "<caption>Largest channels</caption>" in table
    assert table.count("<tr>") == 9
    assert f"<td>channel 3</td><td>{seen.channel_values('lm_head.input')[3]:.4g}</td>" in table
    assert "<caption>Largest heads</caption>" in outliers_table([seen], "layers.0.key")
    other = Seen.of("other text", make_ranges(SMALL))
    value = other.channel_values("lm_head.input")[3]
    assert f"<td>{value:.4g}</td></tr>" in outliers_table([seen, other], "lm_head.input")


def test_a_median_of_zero_leaves_the_ratio_out():
    dead = make_ranges(SMALL, scale=0.0)
    table = outliers_table([Seen.of("dead", dead)], "lm_head.input")
    assert "<td>0</td><td></td>" in table
    assert np.isnan(Seen.of("dead", dead).table["outlier_ratio"]).all()
