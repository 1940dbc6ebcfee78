"""Two maps side by side: the largest key and the largest value of every layer and head. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from workbench.evaluation.kv_table import PARTS, kv_layers, kv_maxima
from workbench.quantization.ranges import ActivationRanges
from workbench.ui.cell_colors import color_cells, value_text
from workbench.ui.heat_map import NONE_SELECTED, HeatMap
from workbench.ui.kv_charts import MAXIMA_VIEW, PART_NAMES
from workbench.ui.scale_legend import ScaleLegend

# Beyond this the maps scroll: a model of 32 heads would fill the screen.
_MOST_HEIGHT = "420px"


class KVMaps(ipywidgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """Heads by layers, keys and values; a click on a cell, or Enter, chooses a layer and a head.

    Args:
        chosen: told "key" or "value", the layer and the head.
    """

    def __init__(self, chosen: Callable[[str, int, int], None]) -> None:
        self._chosen = chosen
        self._layers: list[int] = []
        self.cells = {part: HeatMap(axes=("KV head", "layer"), layout={"width": "100%"}) for part in PARTS}
        self.legends = {part: ScaleLegend() for part in PARTS}
        for part, cells in self.cells.items():
            cells.add_class(f"wb-kv-{part}")
            cells.observe(lambda change, part=part: self._on_cell(part, change), "selected")
        super().__init__([self._one(part) for part in PARTS], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        self.add_class("wb-kv-maps")

    def _one(self, part: str) -> ipywidgets.VBox:
        scrolled = ipywidgets.Box([self.cells[part]], layout={"max_height": _MOST_HEIGHT, "overflow": "hidden auto"})
        name = f"Largest magnitude of {PART_NAMES[part]} as calibrated, before smoothing"
        title = ipywidgets.HTML(f'<div class="wb-line"><b>{name}</b></div>')
        return ipywidgets.VBox(
            [title, self.legends[part], scrolled], layout={"flex": "1 1 480px", "min_width": "300px"}
        )

    def show(self, ranges: ActivationRanges) -> None:
        """Colour the cells, keys and values each on a scale of their own."""
        self._layers = kv_layers(ranges)
        for part, cells in self.cells.items():
            values = kv_maxima(ranges, part)
            colored = color_cells(values, MAXIMA_VIEW)
            letter = part[0].upper()
            texts = [
                f"layer {layer}, KV head {head}: largest {letter} {value_text(values[head, place], MAXIMA_VIEW)}"
                for head in range(len(values))
                for place, layer in enumerate(self._layers)
            ]
            with cells.hold_sync():
                cells.label = f"largest magnitude of {PART_NAMES[part]} as calibrated"
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
