"""Texts shown while they are generated: whole characters, and several told apart."""

from __future__ import annotations

import pytest

from workbench.cli.text_stream import Display, InOrder, Interleaved, TextStream, display_for, in_lines


class Bytes:
    """A tokenizer whose ids are bytes, so that characters are cut in the middle."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", errors="replace")


def feed(display: Display, texts: list[str]) -> None:
    """Hand over the texts byte by byte, a byte of each in turn, as generation does."""
    rows = [text.encode() for text in texts]
    for place in range(max(map(len, rows))):
        for row, content in enumerate(rows):
            if place < len(content):
                display.add(row, content[place])


@pytest.mark.parametrize("text", ["plain", "naïve – 模型 🙂!", ""])
def test_a_stream_says_every_character_once_and_whole(text: str) -> None:
    stream = TextStream(Bytes())
    pieces = [stream.add(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert stream.rest() == ""


def test_a_stream_that_ends_inside_a_character_says_so() -> None:
    stream = TextStream(Bytes())
    assert [stream.add(byte) for byte in "a模".encode()[:-1]] == ["a", "", ""]
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"


def test_texts_in_order_wait_only_for_those_above(capsys: pytest.CaptureFixture[str]) -> None:
    display = InOrder(Bytes(), ["One", "Two", "3"])
    feed(display, ["ab", "cdef", "gh"])
    # The first text ended when the second got its third token; the third must wait for the second.
    assert capsys.readouterr().out == "\n[1] One\nab\n\n[2] Two\ncdef"
    display.close()
    assert capsys.readouterr().out == "\n\n[3] 3\ngh\n"


def test_a_text_that_ends_at_once_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    display = InOrder(Bytes(), ["One", "Two"])
    feed(display, ["", "ab"])
    display.close()
    assert capsys.readouterr().out == "\n[1] One\n\n\n[2] Two\nab\n"


def test_on_a_terminal_every_text_grows_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = Interleaved(Bytes(), ["One", "Two"], columns=24)
    assert capsys.readouterr().out == "\n[1] One\n[2] Two\n\n"
    feed(display, ["a\n\nb", "what is longer than one line"])
    assert capsys.readouterr().out == "[1] a\n[1]\n[2] what is longer than\n"
    display.close()
    assert capsys.readouterr().out == "[1] b\n[2] one line\n"


def test_several_texts_on_a_terminal_are_interleaved() -> None:
    assert isinstance(display_for(Bytes(), ["a", "b"], terminal=True), Interleaved)
    assert isinstance(display_for(Bytes(), ["a", "b"], terminal=False), InOrder)
    assert isinstance(display_for(Bytes(), ["a"], terminal=True), InOrder)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two", ["one two"]),
        ("one two three", ["one two", "three"]),
        ("onetwothree four", ["onetwoth", "ree four"]),
        (" a\nb\n", [" a", "b", ""]),
        ("12345678 ", ["12345678", ""]),
    ],
)
def test_lines_are_cut_at_spaces(text: str, lines: list[str]) -> None:
    assert in_lines(text, 8) == lines


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stream_ends_before_a_stop_and_shows_nothing_of_it(size: int) -> None:
    """Whatever the tokens' size, the pieces together are the text before the stop."""

    class Groups:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(pieces[number] for number in ids)

    text = "an answer. <e <en <end> and more"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    stream, told = TextStream(Groups(), ["<end>", "never"]), ""
    for number in range(len(pieces)):
        told += stream.add(number)
        assert "an answer. <e <en ".startswith(told)
        if stream.stopped:
            break
    assert stream.stopped
    assert told + stream.rest() == "an answer. <e <en "


def test_what_only_looks_like_a_stop_is_shown_at_the_end() -> None:
    stream = TextStream(Bytes(), ["<end>"])
    assert "".join(stream.add(byte) for byte in b"a <en") == "a "
    assert stream.rest() == "<en"
    assert not stream.stopped


def test_displays_tell_that_a_text_has_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    for display in (InOrder(Bytes(), ["One"], ["."]), Interleaved(Bytes(), ["One"], ["."])):
        assert [display.add(0, byte) for byte in b"ab."] == [False, False, True]
        display.close()
        assert "ab\n" in capsys.readouterr().out
