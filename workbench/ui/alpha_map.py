"""A map of all smoothing groups: the alpha of each, or its error, as coloured cells. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import ipywidgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from workbench.evaluation.palette import MISSING
from workbench.recipe import SMOOTHING_GROUPS
from workbench.ui.cell_colors import ColoredCells, MetricView, color_cells, value_text
from workbench.ui.heat_map import NONE_SELECTED, HeatMap
from workbench.ui.scale_legend import ScaleLegend

GROUPS = tuple(SMOOTHING_GROUPS)
VIEWS = {
    "alpha": MetricView("alpha", ".2f", log=False, nan_is_missing=True),
    "error": MetricView("output error, relative L2", ".3%", nan_is_missing=True),
}


class AlphaMap(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Groups by layers; a click on a cell, or Enter, chooses a group.

    Args:
        chosen: told the layer and the group that were chosen.
        changed: told that another quantity is to be shown.

    Attributes:
        shows: the menu of quantities: "alpha" or "error".
        measure_button: asks for errors that are not known yet; shown when some are missing.
    """

    def __init__(self, chosen: Callable[[int, str], None], changed: Callable[[], None]) -> None:
        self._chosen = chosen
        self.shows = ipywidgets.Dropdown(
            options=[("alpha", "alpha"), ("output error", "error")],
            description="Map of all groups shows",
            tooltip="what the colours of the map mean",
            style={"description_width": "initial"},
            layout={"width": "290px"},
        )
        self.legend = ScaleLegend()
        self.measure_button = ipywidgets.Button(
            description="Measure missing errors",
            icon="play",
            tooltip="compute the error of every group that has none at its present alpha",
            layout={"width": "200px", "display": "none"},
        )
        self.cells = HeatMap(rows=list(GROUPS), axes=("group", "layer"))
        self.cells.add_class("wb-alpha-map")
        self.cells.observe(self._on_cell, "selected")
        self.shows.observe(lambda _: changed(), "value")
        head = ipywidgets.HBox(
            [self.shows, self.legend, self.measure_button], layout={"flex_flow": "row wrap", "align_items": "center"}
        )
        super().__init__([head, self.cells])

    def show(self, values: NDArray[np.float64], locked: Collection[tuple[int, str]]) -> None:
        """Colour the cells.

        Args:
            values: ``[groups, layers]`` of what the menu names; NaN where nothing is known.
            locked: marked with a corner.
        """
        view = VIEWS[self.shows.value]
        colored = _alpha_cells(values) if self.shows.value == "alpha" else color_cells(values, view)
        layers = range(values.shape[1])
        places = [(layer, group) for group in GROUPS for layer in layers]
        none_known = "not smoothed" if self.shows.value == "alpha" else "not measured"
        texts = [
            f"layers.{layer}.{group}: "
            + (none_known if np.isnan(value) else f"{view.label} {value_text(value, view)}")
            + (", locked" if (layer, group) in locked else "")
            for (layer, group), value in zip(places, values.flat, strict=True)
        ]
        with self.cells.hold_sync():
            self.cells.label = view.label
            self.cells.columns = [str(layer) for layer in layers]
            self.cells.colors = list(colored.colors.flat)
            self.cells.marks = ["corner" if place in locked else "" for place in places]
            self.cells.texts = texts
        self.legend.show(colored, view, {"corner": "locked"} if locked else None)
        missing = self.shows.value == "error" and bool(np.isnan(values).any())
        self.measure_button.layout.display = "" if missing else "none"

    def select(self, layer: int, group: str) -> None:
        """Mark one group's cell."""
        self.cells.selected = [GROUPS.index(group), layer]

    def _on_cell(self, change: Any) -> None:
        if change["new"] != NONE_SELECTED:
            row, layer = change["new"]
            self._chosen(layer, GROUPS[row])


def _alpha_cells(values: NDArray[np.float64]) -> ColoredCells:
    """Colours over all of 0 to 1: one that followed the least and the largest would leap while a slider is moved."""
    colors = np.full(values.shape, MISSING, dtype=object)
    known = np.isfinite(values)
    colors[known] = [to_hex(color) for color in colormaps[VIEWS["alpha"].colors](values[known])]
    return ColoredCells(colors, 0.0, 1.0)
