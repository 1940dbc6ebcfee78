"""The panel of a layer difference: error over depth, a map of layers and sites, one tap close up, and its tokens.

Computes no error; the rerun in float64 is a job whose work is given.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from workbench.bench.job import Job
from workbench.errors import WorkbenchError
from workbench.evaluation.layer_diff import LayerDiff
from workbench.model.taps import layer_tap, split_tap
from workbench.progress import Reporter
from workbench.recipe import SITES
from workbench.ui.cell_colors import METRIC_VIEWS, ColoredCells, MetricView, badness, color_cells, scale_gradient
from workbench.ui.chart import draw
from workbench.ui.chart_view import ChartView, share_of_row
from workbench.ui.heat_map import HeatMap
from workbench.ui.job_panel import JobPanel
from workbench.ui.layer_diff_charts import depth_chart, error_chart, place_in_depth, tap_in_depth, value_chart
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.token_error_box import TokenErrorBox
from workbench.ui.widget_tree import put

Rerun = Callable[[LayerDiff, Reporter], LayerDiff]


class LayerDiffPanel(Panel):
    """Where two models part: lines over depth, a map of layers and sites, and the chosen tap close up.

    Args:
        diff: what :meth:`LayerDiff.compare` gave.
        state: the state to share the chosen linear layer with (:class:`workbench.bench.state.BenchState`).
        rerun: called with ``(diff, report)``; gives the difference with the errors of a rerun in float64.

    Attributes:
        diff: what is shown; assigning it shows another one, at the same tap where it has that.
        selected: the chosen tap's name; setting it draws that tap.
        metric: the metric that the map shows, one of ``METRIC_VIEWS``.
        window: the window whose tokens are shown, counted from 0.
    """

    diff = traitlets.Instance(LayerDiff)
    selected = traitlets.Unicode()
    metric = traitlets.Unicode("relative_l2")

    def __init__(self, diff: LayerDiff, *, state: Any = None, rerun: Rerun | None = None) -> None:
        self._state = state
        self._make_widgets()
        self._rerun = rerun
        self._job: JobPanel | None = None
        super().__init__(self._laid_out(), "wb-layer-diff")
        self._metrics.observe(self._on_metric, "value")
        self._names.observe(self._on_name, "value")
        self._map.observe(self._on_cell, "selected")
        self._depth.observe(self._on_depth, "selected")
        for button, move in (
            (self._worst, self._on_worst),
            (self._next_worst, self._on_next_worst),
            (self._first, self._on_first),
        ):
            button.on_click(move)
        if state is not None:
            self.watch(state, self._on_state, "selected")
        self.diff = diff

    def _make_widgets(self) -> None:
        words: dict[str, Any] = {"style": {"description_width": "initial"}}
        self._title, self._verdict, self._words, self._scale = (ipywidgets.HTML() for _ in range(4))
        self._depth, self._map = ChartView(layout={"width": "auto"}), HeatMap()
        self._metrics = ipywidgets.Dropdown(
            options=[(view.label, name) for name, view in METRIC_VIEWS.items()], description="Map shows", **words
        )
        self._names = ipywidgets.Dropdown(description="Tap", **words)
        self._worst, self._next_worst, self._first = (
            ipywidgets.Button(description=name, tooltip=words, layout={"width": "auto"})
            for name, words in (
                ("Worst", "the tap that is worst by what the map shows"),
                ("Next worst", "the tap that is next worse after this one"),
                ("First divergence", "where the models part: the first tap beyond rounding"),
            )
        )
        self._values, self._errors = (ChartView(clickable=False, layout=share_of_row(400)) for _ in range(2))
        self._tokens, self._job_place = TokenErrorBox(), ipywidgets.VBox()
        named = {"wb-depth": self._depth, "wb-map": self._map, "wb-metrics": self._metrics, "wb-tap": self._words}
        for name, widget in (named | {"wb-tap-values": self._values, "wb-tap-errors": self._errors}).items():
            widget.add_class(name)

    def show(self, diff: LayerDiff, rerun: Rerun) -> None:
        """Show another difference, with a rerun of its own; one that is offered already stays bound to its pair."""
        self._rerun = rerun
        self.diff = diff

    def _offer_rerun(self, rerun: Rerun) -> None:
        """A button for the difference that is shown now."""
        shown = self.diff

        def work(report: Reporter) -> LayerDiff:
            judged = rerun(shown, report)
            if self.diff is shown:
                self.diff = judged
            return judged

        job = Job("rerun in float64", work, None if self._state is None else self._state.jobs)
        self._job = JobPanel(job, action="Rerun in float64", next_action="Rerun in float64")
        button = self._job.start_button
        button.layout.width = "auto"
        button.tooltip = "run both models again in float64 on one window: tells a fault from rounding"
        put(self._job_place, self._job)

    def _laid_out(self) -> list[ipywidgets.Widget]:
        wrap = {"flex_flow": "row wrap"}
        jumps = [self._worst, self._next_worst, self._first]
        head = ipywidgets.HBox([self._metrics, self._names, *jumps, self._scale], layout=wrap)
        closeup = ipywidgets.HBox([self._values, self._errors], layout=wrap)
        return [
            self._title,
            self._job_place,
            self._verdict,
            self._depth,
            head,
            self._map,
            self._words,
            closeup,
            self._tokens,
        ]

    # ---- what a user goes on with in code

    @property
    def frame(self) -> pd.DataFrame:
        """The difference's table, one row per tap."""
        return self.diff.frame

    @property
    def figure(self) -> Figure | None:
        """What is shown now: error over depth, the chosen tap's values and errors, its tokens."""
        charts = (self._depth.chart, self._values.chart, self._errors.chart, self._tokens.chart)
        known = [chart for chart in charts if chart is not None]
        return draw(known, _headline(self.diff)) if known else None

    @property
    def description(self) -> str:
        """The chosen tap's measures in words, with their markup."""
        return str(self._words.value)

    @property
    def ranked(self) -> list[str]:
        """All taps, the worst first by the metric that the map shows; equal ones from the first layer on."""
        frame, view = self.diff.frame, METRIC_VIEWS[self.metric]
        order = np.argsort(-badness(frame[self.metric].to_numpy(dtype=np.float64), view), kind="stable")
        return [str(frame["tap"].iloc[int(place)]) for place in order]

    @property
    def worst_tokens(self) -> pd.DataFrame:
        """The tokens at which the chosen tap errs most, with their neighbours' texts."""
        return self.diff.per_token.worst(self.selected)

    @property
    def window(self) -> int:
        """The window whose tokens are shown, counted from 0."""
        return self._tokens.window

    @window.setter
    def window(self, window: int) -> None:
        self._tokens.window = window

    def show_error(self, message: str) -> None:
        """Say in the status line what went wrong; the close-up is taken away, since it belongs to another tap."""
        self._values.chart = self._errors.chart = None
        self._words.value = ""
        super().show_error(message)

    def close(self) -> None:
        # A panel whose construction failed is closed as well, when its memory is freed.
        job: JobPanel | None = getattr(self, "_job", None)
        if job is not None:
            job.stop()
        super().close()

    def __repr__(self) -> str:
        return f"LayerDiffPanel({self.diff!r}, selected={self.selected!r})"

    @traitlets.validate("metric")
    def _known_metric(self, proposal: Any) -> str:
        if proposal["value"] not in METRIC_VIEWS:
            raise WorkbenchError(
                f"metric {proposal['value']!r}", allowed=", ".join(METRIC_VIEWS), fix="name one of them"
            )
        return str(proposal["value"])

    # ---- what the user does becomes a trait

    @from_user
    def _on_metric(self, change: Any) -> None:
        self.metric = change["new"]

    @from_user
    def _on_name(self, change: Any) -> None:
        if change["new"] is not None:
            self.selected = change["new"]

    @from_user
    def _on_cell(self, change: Any) -> None:
        row, column = change["new"]
        if row >= 0:
            grid = self.diff.grid()
            self.selected = layer_tap(int(grid.columns[column]), str(grid.index[row]))

    @from_user
    def _on_depth(self, change: Any) -> None:
        tap = tap_in_depth(self.diff, change["new"])
        if tap is not None:
            self.selected = tap

    @from_user
    def _on_worst(self, _button: Any) -> None:
        self.selected = self.ranked[0]

    @from_user
    def _on_next_worst(self, _button: Any) -> None:
        ranked = self.ranked
        self.selected = ranked[min(ranked.index(self.selected) + 1, len(ranked) - 1)]

    @from_user
    def _on_first(self, _button: Any) -> None:
        if self.diff.first_divergence is not None:
            self.selected = self.diff.first_divergence

    @shows_errors
    def _on_state(self, change: Any) -> None:
        if change["new"] in set(self.diff.frame["tap"]):
            self.selected = change["new"]

    # ---- a trait becomes what the user sees

    @traitlets.observe("diff")
    @shows_errors
    def _diff_changed(self, change: Any) -> None:
        diff = self.diff
        taps = list(diff.frame["tap"])
        with self.showing():
            self._title.value = _title(diff)
            self._verdict.value = f'<div class="wb-line">{html.escape(diff.verdict)}</div>' if diff.verdict else ""
            self._depth.chart = depth_chart(diff)
            self._first.disabled = diff.first_divergence is None
            if self._rerun is not None and not diff.verdict:
                self._offer_rerun(self._rerun)
            if list(self._names.options) != taps:
                self._names.options = taps
            self._draw_map()
        same = self.selected in taps and isinstance(change["old"], LayerDiff)
        chosen = self.selected if same else diff.first_divergence or _worst(diff.frame)
        if chosen == self.selected:
            self._show_tap()
        else:
            self.selected = chosen

    @traitlets.observe("metric")
    @shows_errors
    def _metric_changed(self, _change: Any) -> None:
        with self.showing():
            self._metrics.value = self.metric
            self._next_worst.disabled = self.ranked[-1] == self.selected
            self._draw_map()

    @traitlets.observe("selected")
    @shows_errors
    def _selected_changed(self, _change: Any) -> None:
        self._show_tap()
        if self._state is not None and split_tap(self.selected)[1] in SITES:
            self._state.selected = self.selected

    def _show_tap(self) -> None:
        diff, tap = self.diff, self.selected
        values, errors = value_chart(diff, tap), error_chart(diff, tap)
        with self.showing():
            self._values.chart, self._errors.chart = values, errors
            self._words.value = f'<div class="wb-line">{self._describe(tap)}</div>'
            self._names.value = tap
            self._next_worst.disabled = self.ranked[-1] == tap
            self._map.selected = self._cell_of(tap)
            self._depth.selected = place_in_depth(diff, tap)
            self._tokens.show(diff, tap)
            self.say("")

    def _cell_of(self, tap: str) -> list[int]:
        layer, site = split_tap(tap)
        if layer is None:
            return [-1, -1]
        grid = self.diff.grid()
        return [list(map(str, grid.index)).index(site), [int(other) for other in grid.columns].index(layer)]

    def _describe(self, tap: str) -> str:
        row: dict[Any, Any] = dict(self.diff.frame.set_index("tap").loc[tap])
        words = [f"{view.label} {_number(row[name], view)}" for name, view in METRIC_VIEWS.items()]
        words.append(f"reference RMS {row['reference_rms']:.3g}")
        for name, text in (("float64", "in float64"), ("float64_same_weights", "in float64 with the same weights")):
            if name in row and not math.isnan(row[name]):
                words.append(f"{text} {row[name]:.3g}")
        return f"<b>{html.escape(tap)}</b>: {'; '.join(words)}"

    def _draw_map(self) -> None:
        view = METRIC_VIEWS[self.metric]
        grid = self.diff.grid(self.metric)
        cells = color_cells(grid.to_numpy(dtype=np.float64), view)
        names = [layer_tap(int(layer), str(site)) for site in grid.index for layer in grid.columns]
        first = self.diff.first_divergence
        with self._map.hold_sync():
            self._map.rows, self._map.columns = list(map(str, grid.index)), [str(layer) for layer in grid.columns]
            self._map.label = view.label
            self._map.colors = list(cells.colors.flat)
            self._map.marks = ["dot" if name == first else "" for name in names]
            self._map.texts = [
                f"{tap}: {view.label} {_number(value, view)}" + (", the first divergence" if tap == first else "")
                for tap, value in zip(names, grid.to_numpy(dtype=np.float64).flat, strict=True)
            ]
        self._scale.value = _scale(cells, view, marked=first in names)


def _headline(diff: LayerDiff) -> str:
    return f"{diff.options.candidate_name} ({diff.precision}) against {diff.options.reference_name}"


def _title(diff: LayerDiff) -> str:
    state = "the same model" if diff else "NOT the same model"
    words = (
        f"{_headline(diff)}: {state}; KL of the logits {diff.summary.kl:.2g} nats, same first choice "
        f"{diff.summary.top1:.1%}, first divergence: {diff.first_divergence or 'none'}"
    )
    left_out = sorted(diff.options.rescaled_sites)
    rest = f"<br>Left out, since smoothing rescales them: {', '.join(left_out)}." if left_out else ""
    return f'<div class="wb-line"><b>{html.escape(words)}</b>{rest}</div>'


def _worst(frame: pd.DataFrame) -> str:
    """The tap with the largest relative error."""
    return str(frame["tap"].iloc[int(frame["relative_l2"].argmax())])


def _number(value: float, view: MetricView) -> str:
    return "infinite (exact)" if value == math.inf and view.sign < 0 else format(value, view.text)


def _scale(cells: ColoredCells, view: MetricView, *, marked: bool) -> str:
    note = "<span>&#9675; first divergence</span>" if marked else ""
    if cells.best is None or cells.worst is None:
        return f'<div class="wb-scale">every cell is exact {note}</div>'
    return (
        f'<div class="wb-scale"><span>{format(cells.best, view.text)}</span>'
        f'<div class="wb-scale-bar" style="background:{scale_gradient()}"></div>'
        f"<span>{format(cells.worst, view.text)} (worst)</span>{note}</div>"
    )
