"""What the colours and marks of a heat map mean, as one line beside it. Chooses no colours."""

from __future__ import annotations

import html
from collections.abc import Mapping

import ipywidgets

from workbench.evaluation.palette import EXACT
from workbench.ui.cell_colors import ColoredCells, MetricView, scale_gradient, value_text

_SIGNS = {"dot": "&#9679;", "corner": "&#9701;", "cross": "&#215;"}


class ScaleLegend(ipywidgets.HTML):  # type: ignore[misc]  # ipywidgets has no types
    """The colour scale of a heat map with the values at its ends, and its marks.

    legend.show(color_cells(values, view), view, {"dot": "first divergence"})
    """

    def show(
        self, cells: ColoredCells, view: MetricView, marks: Mapping[str, str] | None = None, note: str = ""
    ) -> None:
        """Describe a map.

        Args:
            cells: what it shows.
            view: how the colours came about.
            marks: what the map's cell marks mean, by their names.
            note: a sentence on what the map shows, after all else.
        """
        parts = [f"<span>{html.escape(view.label)}:</span>"]
        if cells.best is None or cells.worst is None:
            parts.append("<span>no cell has a value on this scale</span>")
        else:
            low, high = value_text(cells.best, view), value_text(cells.worst, view)
            parts.append(f"<span>{html.escape(low)}</span>")
            parts.append(f'<div class="wb-scale-bar" style="background:{scale_gradient(view.colors)}"></div>')
            parts.append(f"<span>{html.escape(high)}</span>")
        if view.center is not None:
            parts.append(f"<span>({html.escape(view.meaning or f'white: {value_text(view.center, view)}')})</span>")
            if cells.least is not None and cells.largest is not None:  # the bar reaches as far on either side
                least, largest = value_text(cells.least, view), value_text(cells.largest, view)
                parts.append(f"<span>values from {least} to {largest}</span>")
        if EXACT in cells.colors:
            zero = "0" if view.nan_is_missing else "exact"
            parts.append(f'<span><i class="wb-scale-swatch" style="background:{EXACT}"></i> {zero}</span>')
        parts += [f"<span>{_SIGNS[mark]} {html.escape(text)}</span>" for mark, text in (marks or {}).items()]
        if note:
            parts.append(f"<span>{html.escape(note)}</span>")
        self.value = f'<div class="wb-scale">{"".join(parts)}</div>'
