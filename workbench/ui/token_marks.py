"""Texts of tokens as a person reads them: what is invisible becomes visible. Makes no HTML."""

from __future__ import annotations

import unicodedata

_SHOWN = {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}
_INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """A token with its spaces, line ends and control characters as signs: for tables and tooltips."""
    return "".join(_SHOWN.get(letter) or _named(letter) for letter in text)


def flowing(text: str) -> str:
    """A token as a part of running text: spaces as they are, a line end as a sign and a new line."""
    return "".join(
        letter if letter == " " else _SHOWN[letter] + letter if letter in _SHOWN else _named(letter) for letter in text
    )


def _named(letter: str) -> str:
    """A character that shows nothing by its code point: ``<U+200B>``."""
    return f"<U+{ord(letter):04X}>" if unicodedata.category(letter) in _INVISIBLE else letter
