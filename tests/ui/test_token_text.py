from __future__ import annotations

import pytest
import traitlets

from workbench.ui.token_text import TokenText


def test_a_text_that_grows_keeps_what_is_chosen():
    widget = TokenText("answer")
    widget.show(["a", "b"], tips=["1", "2"], busy=True)
    widget.selected = 1
    widget.show(["a", "b", "c"], tips=["1", "2", "3"])
    assert (widget.selected, widget.busy, widget.tips) == (1, False, ["1", "2", "3"])
    widget.show(["x", "b", "c"])
    assert (widget.selected, widget.tips) == (-1, [])


def test_marks_are_known_ones():
    with pytest.raises(traitlets.TraitError):
        TokenText("answer").show(["a"], marks=["loud"])
