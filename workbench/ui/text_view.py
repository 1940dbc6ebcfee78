"""A text to read and to copy, as a widget: lines that have changed since are marked. Knows nothing about recipes."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from workbench.ui.scripts import joined


class TextView(anywidget.AnyWidget):
    """A text in a box of its own, with a button that copies it.

    Lines that a new text has and the old one had not are marked for a moment, and the first of them is scrolled to.

    Attributes:
        label: what it is, above the text.
        text: the text.
    """

    # Every panel that changes the recipe holds one of these, so that what panels have in common comes with it: the
    # names of their controls, and styles.
    _esm = joined("elements.js", "control_names.js", "text_view.js")
    _css = joined("text_view.css", "panel.css")

    label = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)

    def __init__(self, label: str, text: str = "", **traits: Any) -> None:
        super().__init__(label=label, text=text, **traits)
