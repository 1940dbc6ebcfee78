"""A clickable heat map as a widget: it is told colours and texts, and tells which cell was chosen."""

from __future__ import annotations

import anywidget
import traitlets

from workbench.ui.scripts import joined

NONE_SELECTED = [-1, -1]
CELL_MARKS = ("", "dot", "corner", "cross")


class HeatMap(anywidget.AnyWidget):
    """Rows by columns of coloured cells; a click, or arrow keys and Enter, sets ``selected``.

    Set traits that belong together inside ``with heat_map.hold_sync():``, and they are drawn at once. The length of
    ``colors``, ``texts`` and ``marks`` must be that of rows times columns.

    Attributes:
        rows, columns: labels. Where columns are narrow, only every few of their labels are written.
        row_groups: a heading per row, or empty: rows that follow each other with the same heading stand together.
        axes: what the rows are, and what the columns are.
        names_rows: whether what the rows are is written above their labels: for labels that are numbers.
        colors, texts: one CSS colour and one tooltip per cell, row by row.
        marks: one of ``CELL_MARKS`` per cell, or empty for none; say in the tooltips and a legend what they mean.
        label: what the map shows, for screen readers.
        selected: ``[row, column]`` of the chosen cell; ``[-1, -1]`` for none.
    """

    _esm = joined("elements.js", "heat_map.js")
    _css = joined("heat_map.css")

    rows = traitlets.List(traitlets.Unicode()).tag(sync=True)
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    row_groups = traitlets.List(traitlets.Unicode()).tag(sync=True)
    axes = traitlets.Tuple(traitlets.Unicode(), traitlets.Unicode(), default_value=("site", "layer")).tag(sync=True)
    names_rows = traitlets.Bool(False).tag(sync=True)
    colors = traitlets.List(traitlets.Unicode()).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    marks = traitlets.List(traitlets.Enum(CELL_MARKS)).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    selected = traitlets.List(traitlets.Int(), NONE_SELECTED, minlen=2, maxlen=2).tag(sync=True)
