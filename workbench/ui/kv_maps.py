"""Two maps side by side: the largest key and the largest value of every layer and head. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import numpy as np

from workbench.evaluation.kv_table import PARTS, Values, kv_layers, kv_maxima
from workbench.quantization.ranges import ActivationRanges
from workbench.ui.cell_colors import color_cells, value_text
from workbench.ui.chart_view import share_of_row
from workbench.ui.heat_map import NONE_SELECTED, HeatMap
from workbench.ui.kv_charts import MAXIMA_VIEW, PART_NAMES
from workbench.ui.scale_legend import ScaleLegend

# Beyond this the maps scroll: a model of 32 heads would fill the screen.
_MOST_HEIGHT = "420px"


class KVMaps(ipywidgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """Heads by layers, keys and values; a click on a cell, or Enter, chooses a layer and a head.

    Args:
        chosen: told "key" or "value", the layer and the head.

    Attributes:
        after: the button that shows values as smoothing leaves them; there where smoothing changes any. Keys are the
            same after smoothing. Whoever holds the maps observes it, and calls :meth:`show_values`: two threads must
            not draw at once.
    """

    def __init__(self, chosen: Callable[[str, int, int], None]) -> None:
        self._chosen = chosen
        self._layers: list[int] = []
        self._calibrated: dict[str, Values] = {}
        self._smoothed: Values | None = None
        self.cells = {
            part: HeatMap(axes=("KV head", "layer"), names_rows=True, layout={"width": "100%"}) for part in PARTS
        }
        self.legends, self._titles = ({part: kind() for part in PARTS} for kind in (ScaleLegend, ipywidgets.HTML))
        self.after = ipywidgets.ToggleButton(
            description="after smoothing",
            tooltip="show values as the recipe's smoothing of o leaves them, and as the cache stores them",
            layout={"width": "auto", "flex": "0 0 auto", "display": "none"},
        )
        for part, cells in self.cells.items():
            cells.add_class(f"wb-kv-{part}")
            cells.observe(lambda change, part=part: self._on_cell(part, change), "selected")
        super().__init__([self._one(part) for part in PARTS], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        self.add_class("wb-kv-maps")

    def _one(self, part: str) -> ipywidgets.VBox:
        scrolled = ipywidgets.Box([self.cells[part]], layout={"max_height": _MOST_HEIGHT, "overflow": "hidden auto"})
        parts = [self._titles[part], self.after] if part == "value" else [self._titles[part]]
        # As high with the button as without, so that the maps stand beside each other and stay where they are.
        head = ipywidgets.HBox(parts, layout={"min_height": "34px", "align_items": "center", "grid_gap": "8px"})
        return ipywidgets.VBox([head, self.legends[part], scrolled], layout=share_of_row(400))

    def show(self, ranges: ActivationRanges) -> None:
        """Colour the cells by what calibration saw, keys and values each on a scale of their own."""
        self._layers = kv_layers(ranges)
        self._calibrated = {part: kv_maxima(ranges, part) for part in PARTS}
        self._smoothed = None
        self.after.layout.display = "none"
        for part in PARTS:
            self._show_part(part)

    def show_smoothed(self, values: Sequence[Values | None]) -> None:
        """Take what smoothing makes of the values.

        Args:
            values: ``[kv_heads]`` for each layer; None where it leaves them alone, or that is not known yet.
        """
        if len(values) != len(self._layers):
            return
        before = self._calibrated["value"]
        known = any(each is not None for each in values)
        columns = [before[:, place] if each is None else each for place, each in enumerate(values)]
        smoothed = np.stack(columns, axis=1) if known else None
        if np.array_equal(_or_empty(smoothed), _or_empty(self._smoothed)):
            return  # a slider that is moved draws many times a second
        self._smoothed = smoothed
        self.after.layout.display = "" if known else "none"
        self.show_values()

    def show_values(self) -> None:
        """Show the values as :attr:`after` says."""
        self._show_part("value")

    def _show_part(self, part: str) -> None:
        """Put the map's values into its cells."""
        if part not in self._calibrated:
            return
        after = part == "value" and self._smoothed is not None and self.after.value
        values = self._smoothed if after and self._smoothed is not None else self._calibrated[part]
        name = f"{PART_NAMES[part]}, " + ("after smoothing" if after else "as calibrated")
        cells, colored, letter = self.cells[part], color_cells(values, MAXIMA_VIEW), part[0].upper()
        texts = [
            f"layer {layer}, KV head {head}: largest {letter} {value_text(values[head, place], MAXIMA_VIEW)}"
            for head in range(len(values))
            for place, layer in enumerate(self._layers)
        ]
        self._titles[part].value = f'<div class="wb-line"><b>Largest {name}</b></div>'
        with cells.hold_sync():
            cells.label = f"largest magnitude of {name}"
            cells.rows = [str(head) for head in range(len(values))]
            cells.columns = [str(layer) for layer in self._layers]
            cells.colors, cells.texts = list(colored.colors.flat), texts
        self.legends[part].show(colored, MAXIMA_VIEW)

    def select(self, layer: int, head: int | None) -> None:
        """Mark one layer's head in both maps; no cell when no head is chosen."""
        cell = NONE_SELECTED if head is None or layer not in self._layers else [head, self._layers.index(layer)]
        for cells in self.cells.values():
            cells.selected = cell

    def _on_cell(self, part: str, change: Any) -> None:
        head, place = change["new"]
        if change["new"] != NONE_SELECTED and place < len(self._layers):
            self._chosen(part, self._layers[place], head)


def _or_empty(values: Values | None) -> Values:
    return np.empty(0) if values is None else values
