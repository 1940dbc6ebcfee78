"""The alpha panel's widgets and their arrangement. Knows no state: the panel connects them."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets

from workbench.ui.alpha_charts import GroupPicture, charts_of
from workbench.ui.alpha_map import GROUPS, AlphaMap
from workbench.ui.alpha_rows import GroupRow, RowCallbacks, alpha_slider, rows_heading
from workbench.ui.alpha_work import AlphaWork
from workbench.ui.chart_view import ChartView, share_of_row
from workbench.ui.widget_tree import put

_WRAP = {"flex_flow": "row wrap", "align_items": "center"}


class AlphaView:
    """Every widget of the panel.

    Attributes:
        all_groups: the slider of groups without an alpha of their own.
        reset_all: the button that lets every group follow it.
        layer: whose groups the rows show.
        rows: by group.
        charts: error over alpha, activations, weights.
        map: all groups.
        work: tuning and judging.
        recipe_note, error_note: sentences.
        missing: what stands there while there are no errors.
    """

    def __init__(self, callbacks: RowCallbacks, map_of_groups: AlphaMap) -> None:
        self.all_groups = alpha_slider(
            "Alpha of all groups without their own", "alpha of all groups", {"width": "560px"}
        )
        self.reset_all = ipywidgets.Button(
            description="Reset all",
            tooltip="let every group that is not locked follow the alpha of all groups",
            layout={"width": "100px"},
        )
        self.layer = ipywidgets.IntSlider(
            min=0,
            max=0,
            description="Layer",
            tooltip="the layer whose groups are shown",
            style={"description_width": "104px"},
            layout={"width": "454px"},
        )
        self.rows = {group: GroupRow(group, callbacks) for group in GROUPS}
        self.charts = [ChartView(clickable=True, layout=share_of_row(340, grow=42))]
        self.charts += [ChartView(clickable=False, layout=share_of_row(235)) for _ in range(2)]
        self.map, self.work = map_of_groups, AlphaWork()
        self.work.also_blocks([map_of_groups.measure_button])
        self.recipe_note, self.error_note = ipywidgets.HTML(), ipywidgets.HTML()
        self.missing = ipywidgets.VBox()

    def arranged(self, history: Any) -> list[Any]:
        """The widgets from top to bottom, down to the rows; what follows the status line is :meth:`below`."""
        head = ipywidgets.HBox([self.all_groups, self.reset_all, history], layout=_WRAP)
        rows = ipywidgets.VBox([self.layer, rows_heading(), *self.rows.values()])
        return [head, self.recipe_note, rows, self.missing]

    def below(self) -> list[Any]:
        """What follows the status line."""
        wrap = {"flex_flow": "row wrap"}
        ranges = ipywidgets.HBox(self.charts[1:], layout=wrap | share_of_row(480, grow=58))  # they wrap together
        charts = ipywidgets.HBox([self.charts[0], ranges], layout=wrap)
        self.drawn = ipywidgets.VBox([charts, self.error_note, self.map, self.work])
        return [self.drawn]

    def say_what_is_missing(self, text: str) -> None:
        """Say why there are no errors."""
        line = ipywidgets.HTML(f'<div class="wb-line"><b>No errors to show:</b> {html.escape(text)}</div>')
        put(self.missing, line, *self.missing.children[1:])

    @property
    def offers(self) -> bool:
        """Whether something is offered beside the sentence."""
        return len(self.missing.children) > 1

    def offer(self, widget: Any) -> None:
        """Put what mends it below the sentence."""
        put(self.missing, self.missing.children[0], widget)

    def draw(self, picture: GroupPicture | None) -> None:
        """Show one group in the charts; None takes them away."""
        charts = [None] * len(self.charts) if picture is None else charts_of(picture)
        for view, chart in zip(self.charts, charts, strict=True):
            view.chart = chart
