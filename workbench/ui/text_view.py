"""A text to read and to copy, as a widget: lines that have changed since are marked. Knows nothing about recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

_HERE = Path(__file__).parent


class TextView(anywidget.AnyWidget):
    """A text in a box of its own, with a button that copies it.

    Lines that a new text has and the old one had not are marked for a moment, and the first of them is scrolled to.

    Attributes:
        label: what it is, above the text.
        text: the text.
    """

    # Every panel that changes the recipe holds one of these, so that what panels have in common comes with it: the
    # names of their controls, and styles.
    _esm = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("control_names.js", "text_view.js"))
    _css = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("text_view.css", "panel.css"))

    label = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)

    def __init__(self, label: str, text: str = "", **traits: Any) -> None:
        super().__init__(label=label, text=text, **traits)
