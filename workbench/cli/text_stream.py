"""Shows texts while they are generated: one as it comes, several told apart. Knows ids and a tokenizer, no model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, Protocol


class TextStream:
    """Turns one row's ids into pieces of text, holding back what may still change.

    Args:
        tokenizer: anything with ``decode(ids)``.
        stops: texts before which this one ends.

    Attributes:
        stopped: one of them has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._told = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this id makes certain; empty inside a character of several tokens, or inside a stop."""
        self._ids.append(token)
        whole = self._decode()
        text = before_stops(whole, self._stops)
        self.stopped = text != whole
        if not self.stopped:
            text = text[: len(text) - _begun(text, self._stops)]
        # A character cut in two shows as U+FFFD until its last token comes.
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece

    def rest(self) -> str:
        """What was held back to the end."""
        text = before_stops(self._decode(), self._stops)
        return text[len(self._told) :] if text.startswith(self._told) else ""

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text


def before_stops(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop in it."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may yet turn out to be a stop."""
    longest = max(map(len, stops), default=1) - 1
    endings = (text[len(text) - size :] for size in range(min(longest, len(text)), 0, -1))
    return next((len(ending) for ending in endings if any(stop.startswith(ending) for stop in stops)), 0)


class Display(Protocol):
    """Shows prompts and what is generated after them."""

    def add(self, row: int, token: int) -> bool:
        """One new id of one row; rows take turns, as :func:`workbench.runtime.generate.generate` tells them.

        Returns:
            Whether the row's text has come to a stop.
        """
        ...

    def close(self) -> None:
        """Nothing more comes: show what was held back."""
        ...


def display_for(tokenizer: Any, prompts: Sequence[str], stops: Sequence[str] = (), *, terminal: bool) -> Display:
    """Line by line for several texts on a terminal, else one text after the other. The prompts are shown at once."""
    kind = Interleaved if terminal and len(prompts) > 1 else InOrder
    return kind(tokenizer, prompts, stops)


class InOrder:
    """One text below the other: the first as it comes, each later one as soon as those above it have ended."""

    def __init__(self, tokenizer: Any, prompts: Sequence[str], stops: Sequence[str] = ()) -> None:
        several = len(prompts) > 1
        self._headers = [f"[{number}] {text}" if several else text for number, text in enumerate(prompts, start=1)]
        self._streams = [TextStream(tokenizer, stops) for _ in prompts]
        self._held = ["" for _ in prompts]
        self._counts = [0 for _ in prompts]
        self._current = 0
        self._begin()

    def add(self, row: int, token: int) -> bool:
        self._held[row] += self._streams[row].add(token)
        self._counts[row] += 1
        # A row that a later one has overtaken has ended.
        while self._current < row and self._counts[self._current] < self._counts[row]:
            self._end()
        if row == self._current:
            self._flush()
        return self._streams[row].stopped

    def close(self) -> None:
        while self._current < len(self._streams):
            self._end()

    def _begin(self) -> None:
        print(f"\n{self._headers[self._current]}")
        self._flush()

    def _flush(self) -> None:
        print(self._held[self._current], end="", flush=True)
        self._held[self._current] = ""

    def _end(self) -> None:
        self._flush()
        print(self._streams[self._current].rest(), flush=True)
        self._current += 1
        if self._current < len(self._streams):
            self._begin()


class Interleaved:
    """Every text at once: each line of it, led by the text's number, as soon as the line is full.

    Args:
        tokenizer: anything with ``decode(ids)``.
        prompts: the texts that are continued.
        stops: texts before which each ends.
        columns: width of a whole line; None takes the terminal's.
    """

    def __init__(
        self, tokenizer: Any, prompts: Sequence[str], stops: Sequence[str] = (), columns: int | None = None
    ) -> None:
        self._streams = [TextStream(tokenizer, stops) for _ in prompts]
        self._open = ["" for _ in prompts]
        columns = shutil.get_terminal_size().columns if columns is None else columns
        self._width = max(20, columns - len(f"[{len(prompts)}] "))
        print()
        for number, text in enumerate(prompts, start=1):
            print(f"[{number}] {text}")
        print(flush=True)

    def add(self, row: int, token: int) -> bool:
        *full, self._open[row] = in_lines(self._open[row] + self._streams[row].add(token), self._width)
        self._show(row, full)
        return self._streams[row].stopped

    def close(self) -> None:
        for row, stream in enumerate(self._streams):
            rest = self._open[row] + stream.rest()
            if rest:
                self._show(row, in_lines(rest, self._width))

    @staticmethod
    def _show(row: int, lines: Sequence[str]) -> None:
        for line in lines:
            print(f"[{row + 1}] {line}".rstrip(), flush=True)


def in_lines(text: str, width: int) -> list[str]:
    """Text cut at its line ends, and at spaces where a line would be wider; a word that is too long is cut."""
    lines = []
    for line in text.split("\n"):
        while len(line) > width:
            space = line.rfind(" ", 1, width + 1)
            place = space if space > 0 else width
            lines.append(line[:place])
            line = line[place:].removeprefix(" ")
        lines.append(line)
    return lines
