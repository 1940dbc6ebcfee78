from __future__ import annotations

import pytest
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.errors import WorkbenchError
from workbench.ui.ranges_comparisons import Comparisons, title


@pytest.fixture
def bench(ranges_bench, keep_ranges):
    bench = ranges_bench()
    keep_ranges(bench, windows=16)
    bench.use_calibration(keep_ranges(bench, windows=128))
    return bench


def test_without_a_bench_there_is_what_was_brought_along():
    ranges = make_ranges(SMALL, windows=8)
    assert Comparisons(None, None).choices() == {"nothing": ""}
    brought = Comparisons(None, ranges)
    assert brought.choices() == {"nothing": "", "the other ranges": "given"}
    assert brought.named(ranges) == "given"
    assert brought.fetch("given").ranges is ranges
    assert brought.fetch("given").name == title(ranges) == "words, 8 x 512 tokens"
    with pytest.raises(WorkbenchError, match="nothing to compare with is called 'smoothing'; choose another"):
        brought.fetch("smoothing")


def test_a_bench_offers_smoothing_and_other_calibrations(bench):
    offered = Comparisons(bench, None)
    assert list(offered.choices().values()) == ["", "smoothing", "data:words, 16 x 512 tokens, float32"]
    assert offered.named("smoothing") == "smoothing"
    assert offered.named("words, 16 x 512 tokens, float32") == "data:words, 16 x 512 tokens, float32"
    assert offered.fetch("data:words, 16 x 512 tokens, float32").ranges.source[0].windows == 16
    smoothed = offered.fetch("smoothing").ranges.inputs["layers.0.mlp.down"]
    assert not smoothed.equal(bench.calibration.ranges.inputs["layers.0.mlp.down"])


def test_what_is_not_there_is_refused(bench):
    with pytest.raises(WorkbenchError, match=r"allowed: smoothing, words, 16 x 512 tokens, float32; .*did you mean"):
        Comparisons(bench, None).named("words, 16 x 512 token")
    with pytest.raises(WorkbenchError, match=r"bench\.calibrations\(\) lists what is there"):
        Comparisons(bench, None).named("zzzzz")
    with pytest.raises(WorkbenchError, match="there is no other calibration of this model"):
        Comparisons(None, None).named("zzzzz")
    with pytest.raises(WorkbenchError, match="the calibration 'gone' is gone; choose another, or calibrate again"):
        Comparisons(bench, None).fetch("data:gone")
