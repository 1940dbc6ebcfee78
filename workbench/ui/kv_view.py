"""The KV panel's widgets and their arrangement. Knows no state: the panel connects them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from workbench.recipe import Int8KVCache
from workbench.ui.chart import Chart
from workbench.ui.chart_view import ChartView, share_of_row
from workbench.ui.kv_charts import GRANULARITIES
from workbench.ui.kv_maps import KVMaps
from workbench.ui.kv_study_box import KVStudyBox
from workbench.ui.limited_number import LimitedFloat

_WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 8px"}
_WIDE = {"description_width": "initial"}
DENSE = "dense"
ALL_HEADS = -1


class KVView:
    """Every widget of the panel.

    Attributes:
        stored: how the recipe stores keys and values: ``DENSE``, "per_tensor" or "per_head".
        slider, field: the percentile; the field takes what the slider is too short or too coarse for.
        maps: maxima of layers and heads.
        layer, head: what the charts show; ``ALL_HEADS`` for all together.
        depth, curve, heads, magnitudes: the charts.
        heading, choice_note, memory, layer_note, layers_note, errors_note, missing: sentences.
        warning: layers that an INT8 cache spoils, why, and what mends them.
        study: the job that collects what errors need.
    """

    def __init__(self, study: KVStudyBox, chosen: Callable[[str, int, int], None]) -> None:
        self.stored = ipywidgets.ToggleButtons(
            options=[("not quantized", DENSE), *((f"INT8 {GRANULARITIES[each]}", each) for each in _ORDER)],
            description="Keys and values are",
            tooltips=[
                "stored in the recipe's dtype",
                "one scale for all heads of a layer",
                "one scale for each KV head",
            ],
            style={"button_width": "auto", **_WIDE},
        )
        self.slider = ipywidgets.FloatSlider(
            100.0,
            min=99.0,
            max=100.0,
            step=0.01,
            readout=False,
            description="Percentile that a scale covers",
            tooltip="the share of calibrated magnitudes that a scale covers, in percent; the rest is clipped",
            style=_WIDE,
            layout={"flex": "1 1 300px", "max_width": "560px"},
        )
        self.field = LimitedFloat(
            100.0,
            50.0,
            100.0,
            step=0.001,
            description="Percentile in figures",
            tooltip="the same in percent",
            layout={"width": "92px"},
        )
        self.field.add_class("wb-unseen-label")  # it stands beside the slider
        self.field.note.layout.flex = "0 0 110px"  # its place is kept: what follows stays where it is
        self.maps = KVMaps(chosen)
        self.layer = ipywidgets.IntSlider(
            0, min=0, max=0, description="Layer", tooltip="the layer that the charts show", layout={"width": "440px"}
        )
        self.head = ipywidgets.Dropdown(
            options=[("all", ALL_HEADS)],
            description="KV head",
            tooltip="the head whose magnitudes are shown",
            style=_WIDE,
            layout={"width": "160px"},
        )
        self.depth, self.curve, self.heads, self.magnitudes = (
            ChartView(clickable=clickable, layout=share_of_row(400)) for clickable in (True, True, True, False)
        )
        self.heading, self.choice_note, self.memory, self.missing = (ipywidgets.HTML() for _ in range(4))
        self.layer_note, self.layers_note, self.errors_note, self.warning = (ipywidgets.HTML() for _ in range(4))
        self.study = study
        for widget, name in ((self.stored, "stored"), (self.slider, "slider"), (self.field, "field")):
            widget.add_class(f"wb-kv-{name}")

    @property
    def charts(self) -> tuple[ChartView, ...]:
        return self.depth, self.curve, self.heads, self.magnitudes

    def above(self, history: Any) -> list[Any]:
        """From the top down to where the status line stands."""
        percentile = ipywidgets.HBox(
            [self.slider, self.field, ipywidgets.Label("%"), self.field.note, history], layout=_WRAP
        )
        self.controls = ipywidgets.VBox([self.stored, percentile, self.choice_note, self.memory])
        return [self.heading, self.controls, self.missing, self.study]

    def below(self) -> list[Any]:
        """What follows the status line."""
        self.place = ipywidgets.HBox([self.layer, self.head], layout=_WRAP)
        wrap = {"flex_flow": "row wrap"}
        pairs = [ipywidgets.HBox(pair, layout=wrap | share_of_row(810)) for pair in (self.charts[:2], self.charts[2:])]
        charts = ipywidgets.HBox(pairs, layout=wrap)  # one, two or four in a row, never three
        self.errors = ipywidgets.VBox(
            [self.warning, self.place, self.layer_note, charts, self.layers_note, self.errors_note]
        )
        return [self.maps, self.errors]

    def show_choice(self, how: Int8KVCache, *, int8: bool) -> None:
        """Put the recipe's choice into the widgets."""
        self.stored.value = how.granularity if int8 else DENSE
        self.slider.value, self.field.value = max(how.percentile, self.slider.min), how.percentile

    def show_place(self, layer: int, head: int | None) -> None:
        """Mark what the charts show."""
        self.layer.value = layer
        self.head.value = ALL_HEADS if head is None else head
        self.maps.select(layer, head)

    def set_sizes(self, layers: int, heads: int) -> None:
        """The model's."""
        self.layer.max = layers - 1
        options = [("all", ALL_HEADS), *((str(each), each) for each in range(heads))]
        if list(self.head.options) != options:
            self.head.options = options

    def draw(self, charts: Sequence[Chart]) -> None:
        """Show the four charts."""
        for view, chart in zip(self.charts, charts, strict=True):
            view.chart = chart


_ORDER = ("per_tensor", "per_head")
