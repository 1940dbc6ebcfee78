"""Bars on a terminal, nothing in a pipe."""

from __future__ import annotations

import io

import pytest

from workbench.cli.progress_bars import ProgressBars
from workbench.progress import ProgressEvent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_nothing() -> None:
    stream = io.StringIO()
    with ProgressBars(stream) as report:
        report(ProgressEvent("convert", 1, 2))
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_wiped() -> None:
    stream = Terminal()
    with ProgressBars(stream) as report:
        report(ProgressEvent("convert", 1, 4, "layers"))
        report(ProgressEvent("convert", 4, 4, "layers"))
    text = stream.getvalue()
    assert "convert:  25%" in text
    assert "convert: 100%" in text
    assert text.rsplit("\r", 2)[-2].strip() == ""


def test_phases_nest_and_follow_each_other() -> None:
    stream = Terminal()
    with ProgressBars(stream) as report:
        report(ProgressEvent("build", 0, 2))
        report(ProgressEvent("parse", 1, 3, depth=1))
        report(ProgressEvent("fuse", 1, 3, depth=1))
        report(ProgressEvent("build", 1, 2))
    text = stream.getvalue()
    assert text.index("parse") < text.index("fuse")
    assert "build:  50%" in text


def test_an_unknown_total_counts_up() -> None:
    stream = Terminal()
    with ProgressBars(stream) as report:
        report(ProgressEvent("read", 7, 0, "tokens"))
    assert "7tokens" in stream.getvalue()


def test_bars_are_wiped_before_an_error_is_told() -> None:
    stream = Terminal()

    def fail() -> None:
        with ProgressBars(stream) as report:
            report(ProgressEvent("convert", 1, 4))
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert stream.getvalue().rsplit("\r", 2)[-2].strip() == ""
