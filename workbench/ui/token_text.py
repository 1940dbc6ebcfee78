"""A text as its tokens, as a widget: each may carry a bar of colour, a mark and a tooltip, and can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from workbench.ui.scripts import joined

# "first" stands out, "differs" is underlined, "instead" is what another model would say, "special" is no text.
TOKEN_MARKS = ("", "differs", "first", "instead", "special")


class TokenText(anywidget.AnyWidget):
    """Running text whose tokens can be pointed at: with the mouse, or with arrow keys; a click or Enter chooses.

    Left and right go from token to token, up and down from one marked token to the next. What is given is shown as
    text, whatever a model wrote.

    Args:
        label: what the text is, for screen readers.

    Attributes:
        texts: one text per token (see :func:`workbench.ui.token_marks.flowing`).
        bars: a CSS colour below each token, or empty for none.
        marks: one of ``TOKEN_MARKS`` per token, or empty for none.
        tips: a tooltip per token, or empty for none.
        busy: more tokens will come.
        selected: the chosen token; -1 for none.
    """

    _esm = joined("elements.js", "token_text.js")
    _css = joined("token_text.css", "panel.css")

    label = traitlets.Unicode().tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    bars = traitlets.List(traitlets.Unicode()).tag(sync=True)
    marks = traitlets.List(traitlets.Enum(TOKEN_MARKS)).tag(sync=True)
    tips = traitlets.List(traitlets.Unicode()).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)

    def __init__(self, label: str, **traits: Any) -> None:
        super().__init__(label=label, **traits)

    def show(
        self,
        texts: Sequence[str],
        *,
        bars: Sequence[str] = (),
        marks: Sequence[str] = (),
        tips: Sequence[str] = (),
        busy: bool = False,
    ) -> None:
        """Replace what is shown, in one message; nothing is chosen then, unless the text only grew."""
        grew = list(texts[: len(self.texts)]) == self.texts
        with self.hold_sync():
            self.bars, self.marks, self.tips = list(bars), list(marks), list(tips)
            self.texts, self.busy = list(texts), busy
            if not grew:
                self.selected = -1
