from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.bench.state import Calibration
from workbench.ui import ranges_texts
from workbench.ui.ranges_charts import Seen
from workbench.ui.ranges_texts import button_names, describe, heading, outliers_table, why_larger


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
    assert f"<caption>8 largest of {len(seen.channel_values('lm_head.input'))} channels</caption>" in table
    assert table.count("<tr>") == 9
    assert f"<td>channel 3</td><td>{seen.channel_values('lm_head.input')[3]:.2f}</td>" in table
    assert "<caption>All 2 heads</caption>" in outliers_table([seen], "layers.0.key")
    other = Seen.of("other text", make_ranges(SMALL))
    value = other.channel_values("lm_head.input")[3]
    assert f"<td>{value:.2f}</td></tr>" in outliers_table([seen, other], "lm_head.input")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([10.125, 7.0, 6.0], ["10.12", "7.00", "6.00"]),
        ([25216.0, 131.0], ["25,216", "131"]),
        ([0.5, 0.0123, 0.0], ["0.5000", "0.0123", "0.0000"]),
        ([0.0], ["0"]),
        ([1234.5, 3e-8, 2.0], ["1,234.5000", "3e-08", "2.0000"]),
        ([1e-30, 5.0], ["1e-30", "5.0000"]),
    ],
)
def test_a_column_has_one_format(seen, monkeypatch, values, shown):
    top = pd.DataFrame({"channel": 0, "name": "c", "absmax": values, "times_median": 1.0})
    monkeypatch.setattr(ranges_texts, "top_channels", lambda *_: top)
    table = outliers_table([seen], "lm_head.input")
    assert re.findall(r"<td>c</td><td>([^<]*)</td>", table) == shown


def test_a_median_of_zero_leaves_the_ratio_out():
    dead = make_ranges(SMALL, scale=0.0)
    table = outliers_table([Seen.of("dead", dead)], "lm_head.input")
    assert "<td>0</td><td></td>" in table
    assert np.isnan(Seen.of("dead", dead).table["outlier_ratio"]).all()


def test_what_smoothing_made_larger_is_explained(seen):
    both = {"layers.1.value": 40.0, "layers.1.attention.qkv.output": 40.0}
    text = why_larger("ratio", "absmax", [seen, Seen.of("after smoothing", make_ranges(SMALL, spoil=both))])
    assert text.startswith("V, and with it qkv output, becomes up to ")
    grown = Seen.of("after smoothing", make_ranges(SMALL, spoil={"layers.1.value": 40.0}))  # below what q and k reach
    text = why_larger("ratio", "absmax", [seen, grown])
    assert text.startswith("V becomes up to ")
    assert text.endswith("divides V by the scales of o, below 1 where o's input is small against o's weights.")
    assert "(layer 1)" in text
    assert why_larger("other", "absmax", [seen, grown]) == ""
    assert why_larger("ratio", "outlier_ratio", [seen, grown]) == ""
    assert why_larger("ratio", "absmax", [seen]) == ""
    other_text = Seen.of("words", grown.ranges)  # no smoothing, nothing to explain
    assert why_larger("ratio", "absmax", [seen, other_text]) == ""
    assert why_larger("ratio", "absmax", [seen, Seen.of("after smoothing", seen.ranges)]) == ""
