"""A clickable heat map as a widget: it is told colours and texts, and tells which cell was chosen."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_HERE = Path(__file__).parent


class HeatMap(anywidget.AnyWidget):
    """Rows by columns of coloured cells; a click, or arrow keys and Enter, sets ``selected``.

    Attributes:
        rows, columns: labels.
        colors, texts: one CSS colour and one tooltip per cell, row by row.
        label: what the map shows, for screen readers.
        selected: ``[row, column]`` of the chosen cell; ``[-1, -1]`` for none.
    """

    _esm = _HERE / "heat_map.js"
    _css = _HERE / "heat_map.css"

    rows = traitlets.List(traitlets.Unicode()).tag(sync=True)
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colors = traitlets.List(traitlets.Unicode()).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    selected = traitlets.List(traitlets.Int(), [-1, -1], minlen=2, maxlen=2).tag(sync=True)
