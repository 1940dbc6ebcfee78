"""The tokens of one window, and where one tap errs: a chart over positions, the text itself, the worst tokens."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from workbench.errors import LimitError
from workbench.evaluation.layer_diff import LayerDiff
from workbench.ui.cell_colors import METRIC_VIEWS, color_cells
from workbench.ui.chart import Chart
from workbench.ui.chart_view import ChartView, share_of_row
from workbench.ui.layer_diff_charts import token_chart
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.token_marks import flowing, visible
from workbench.ui.token_text import TokenText

_VIEW = METRIC_VIEWS["relative_l2"]


class TokenErrorBox(Panel):
    """A choice of windows, the errors over positions, the worst tokens with their neighbours, and the window's text.

    Attributes:
        window: which window is shown, counted from 0.
        position: the chosen token; -1 for none. A click in the chart or on the text sets it.
    """

    window = traitlets.Int(0)
    position = traitlets.Int(-1)

    def __init__(self) -> None:
        self._shown: tuple[LayerDiff, str] | None = None
        self._windows = ipywidgets.Dropdown(
            description="Window", style={"description_width": "initial"}, layout={"width": "150px"}
        )
        self._chart = ChartView(layout=share_of_row(440, grow=3))
        self._text = TokenText("tokens of the window, underlined by their error")
        self._table = ipywidgets.HTML(layout=share_of_row(360, grow=2))
        self._note = ipywidgets.HTML()
        for name, widget in (("wb-token-errors", self._chart), ("wb-token-worst", self._table)):
            widget.add_class(name)
        head = ipywidgets.HBox([self._windows, self._note], layout={"flex_flow": "row wrap"})
        middle = ipywidgets.HBox([self._chart, self._table], layout={"flex_flow": "row wrap"})
        super().__init__([head, middle, self._text], "wb-token-box")
        self._windows.observe(self._on_window, "value")
        self._chart.observe(self._on_chart, "selected")
        self._text.observe(self._on_text, "selected")

    @property
    def chart(self) -> Chart | None:
        """The chart that is shown."""
        return self._chart.chart

    def show(self, diff: LayerDiff, tap: str) -> None:
        """Show one tap's errors; nothing where the difference keeps no tokens.

        Raises:
            WorkbenchError: no such tap was compared.
        """
        known = diff.per_token.windows
        self.layout.display = "" if known else "none"
        self._shown = None
        if not known:
            self._chart.chart = None
            return
        if len(self._windows.options) != known:
            with self.showing():
                self._windows.options = [(f"{number}, of {diff.windows}", number) for number in range(known)]
        if self.window >= known:
            self.window = 0
        self._shown = (diff, tap)
        self._draw()

    @from_user
    def _on_window(self, change: Any) -> None:
        if change["new"] is not None:
            self.window = change["new"]

    @from_user
    def _on_chart(self, change: Any) -> None:
        if change["new"][0] == 0:
            self.position = change["new"][1]

    @from_user
    def _on_text(self, change: Any) -> None:
        if change["new"] >= 0:
            self.position = change["new"]

    @traitlets.observe("window")
    @shows_errors
    def _window_changed(self, _change: Any) -> None:
        if self._shown is not None:
            self._draw()

    @traitlets.observe("position")
    @shows_errors
    def _position_changed(self, _change: Any) -> None:
        self._mark()

    @traitlets.validate("window")
    def _kept_window(self, proposal: Any) -> int:
        if self._shown is not None and not 0 <= proposal["value"] < self._shown[0].per_token.windows:
            raise LimitError(
                f"window {proposal['value']}", allowed=f"0 to {self._shown[0].per_token.windows - 1}", fix="choose one"
            )
        return int(proposal["value"])

    def _draw(self) -> None:
        assert self._shown is not None
        diff, tap = self._shown
        errors = diff.per_token.of(tap)[self.window].numpy().astype(np.float64)
        texts = diff.per_token.window_texts(self.window)
        with self.showing():
            self._windows.value = self.window
            self._chart.chart = token_chart(diff, tap, self.window)
            self._text.show(
                [flowing(text) for text in texts],
                bars=list(color_cells(errors, _VIEW).colors),
                tips=[
                    f"token {position}: {visible(text)}\n{_VIEW.label} {format(error, _VIEW.text)}"
                    for position, (text, error) in enumerate(zip(texts, errors, strict=True))
                ],
            )
            self._table.value = _worst_table(diff, tap)
        self._mark()

    def _mark(self) -> None:
        """Show the chosen token in the chart and in the text."""
        if self._shown is None:
            return
        diff, tap = self._shown
        errors = diff.per_token.of(tap)[self.window]
        if not 0 <= self.position < len(errors):
            self._note.value = '<div class="wb-line">Click a token, in the chart or in the text.</div>'
            return
        with self.showing():
            self._chart.selected, self._text.selected = [0, self.position], self.position
        text = visible(diff.per_token.window_texts(self.window)[self.position])
        self._note.value = (
            f'<div class="wb-line">token {self.position} <b>{html.escape(text)}</b>: '
            f"{_VIEW.label} {format(float(errors[self.position]), _VIEW.text)}</div>"
        )


def _worst_table(diff: LayerDiff, tap: str) -> str:
    rows = "".join(_worst_row(row) for row in diff.per_token.worst(tap).to_dict("records"))
    return (
        '<table class="wb-token-table"><tr><th>error</th><th>window: token</th><th>the worst tokens, and what stands '
        f"around them</th></tr>{rows}</table>"
    )


def _worst_row(row: dict[Any, Any]) -> str:
    here = f'<span class="wb-here">{html.escape(visible(row["text"]))}</span>'
    place = f"{row['window']}: {row['position']}"
    figures = f'<td class="wb-figure">{row["relative_l2"]:.3g}</td><td class="wb-figure">{place}</td>'
    return f"<tr>{figures}<td>{_cell(row['before'])}{here}{_cell(row['after'])}</td></tr>"


def _cell(text: str) -> str:
    """A text on one line of a table."""
    return html.escape(visible(text).replace("\N{OPEN BOX}", " "))
