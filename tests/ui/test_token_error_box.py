"""The box of one window's tokens by itself; its place in the panel is tested with the panel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.errors import WorkbenchError
from workbench.evaluation.token_errors import TokenErrors
from workbench.ui.token_error_box import TokenErrorBox

TAP = "layers.1.mlp.down"


def test_it_shows_nothing_before_it_is_told_what():
    box = TokenErrorBox()
    assert box.chart is None
    box.position = 3
    box.window = 1
    assert box.status == ""


def test_a_window_that_the_next_difference_lacks_gives_way_to_the_first(make_diff):
    box = TokenErrorBox()
    box.show(make_diff(), TAP)
    box.window = 1
    assert "window 1" in box.chart.title
    diff = make_diff()
    kept = diff.per_token
    first = {tap: errors[:1] for tap, errors in kept.by_tap.items()}
    box.show(replace(diff, per_token=TokenErrors(kept.ids[:1], first, kept.texts[:1])), TAP)
    assert box.window == 0
    assert "window 0" in box.chart.title


def test_the_chosen_token_stays_chosen_at_another_tap(make_diff):
    box = TokenErrorBox()
    box.show(make_diff(), TAP)
    box.position = 2
    before = box._note.value
    box.show(make_diff(spoil={"logits": 0.5}), "logits")
    assert box._chart.selected == [0, 2]
    assert box._note.value != before


def test_an_unknown_tap_is_named(make_diff):
    with pytest.raises(WorkbenchError, match=r"tap 'layers\.9' has no errors per token"):
        TokenErrorBox().show(make_diff(), "layers.9")
