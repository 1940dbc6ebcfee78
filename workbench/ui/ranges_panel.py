"""The panel of activation ranges: a map of layers and sites, and the chosen place close up. Computes no statistic."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
import traitlets

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState, Calibration
from workbench.errors import Cancelled
from workbench.evaluation.range_table import hottest_place, linear_of, place_of, top_channels
from workbench.quantization.ranges import ActivationRanges
from workbench.ui.calibrate_box import CalibrateBox
from workbench.ui.cell_colors import color_cells
from workbench.ui.chart_view import ChartView, share_of_row
from workbench.ui.heat_map import HeatMap
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.ranges_charts import RANGE_VIEWS, RangeMap, Seen, chosen_table, close_up, draw_all, range_map
from workbench.ui.ranges_comparisons import SMOOTHING, Comparisons, title, while_wanted
from workbench.ui.ranges_texts import SHOWS, button_names, describe, heading, outliers_table, require_known, why_larger
from workbench.ui.scale_legend import ScaleLegend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = {"description_width": "initial"}
_ROW = {"flex_flow": "row wrap", "align_items": "center"}


class RangesPanel(Panel):
    """What calibration saw: a map of layers by sites; the chosen place's histogram, channels and outliers below.

    Args:
        ranges: to look at; None looks at the state's calibration.
        state: shared with other panels; None makes one of its own. On a Bench the panel can calibrate, and shows what
            the recipe's smoothing makes of the ranges.
        against: another calibration to look at beside it: its name on the bench (:meth:`Bench.calibrations`), or
            ranges.

    Raises:
        WorkbenchError: nothing is called ``against``.

    Attributes:
        place: the chosen place, such as ``layers.12.mlp.down.input`` or ``layers.12.key``; setting it shows it.
        metric: what the map shows, a key of ``RANGE_VIEWS``.
        compare: "" for nothing, "smoothing", or "data:NAME" for another calibration.
        shows: whether the map shows "this", the "other" or the "ratio" (other over this).
    """

    place = traitlets.Unicode("")
    metric = traitlets.Unicode("absmax")
    compare = traitlets.Unicode("")
    shows = traitlets.Unicode("this")

    def __init__(
        self,
        ranges: ActivationRanges | None = None,
        *,
        state: BenchState | None = None,
        against: str | ActivationRanges = "",
    ) -> None:
        self._state = state if state is not None else BenchState()
        self._bench = self._state if isinstance(self._state, Bench) else None
        if ranges is not None:
            self._state.calibration = Calibration(title(ranges), ranges)
        self._comparisons = Comparisons(self._bench, against if isinstance(against, ActivationRanges) else None)
        self._seen: Seen | None = None
        self._other: Seen | None = None
        self._map: RangeMap | None = None
        self._opened_itself = False  # the box to calibrate in; it closes itself again only then
        self._build()
        super().__init__(self._layout(), "wb-ranges")
        self._listen()
        self._take_calibration()
        if against:
            self.compare = self._comparisons.named(against)
        if self._bench is not None and self._box is not None and self._box.quick_look_needed:
            self._box.quick_look()

    # ---- what a user goes on with in code

    @property
    def frame(self) -> pd.DataFrame:
        """One row per layer and site; with another set of ranges beside it, its numbers too (``*_other``)."""
        if self._seen is None:
            return pd.DataFrame()
        if self._other is None:
            return self._seen.table
        numbers = ["place", *RANGE_VIEWS, "top_channel"]
        return self._seen.table.merge(self._other.table[numbers], on="place", how="left", suffixes=("", "_other"))

    @property
    def figure(self) -> Figure | None:
        """The map and the chosen place."""
        if self._map is None or not self.place:
            return None
        return draw_all(self._map, self.place, self._both, why_larger(self.shows, self.metric, self._both))

    @property
    def channels(self) -> pd.DataFrame:
        """The chosen place's largest channels; see :func:`workbench.evaluation.range_table.top_channels`."""
        if self._seen is None or not self.place:
            return pd.DataFrame()
        return top_channels(self._seen.ranges, self.place)

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait until everything is shown: a calibration that is under way, and what stands beside it.

        Raises:
            TimeoutError: it takes longer.
        """
        if self._box is not None and self._box.job is not None:
            self._box.job.wait(timeout_s)
        super().settle(timeout_s)

    def __repr__(self) -> str:
        if self._seen is None:
            return "RangesPanel(nothing calibrated yet)"
        beside = f" beside {self._other.name}" if self._other is not None else ""
        return f"RangesPanel({self._seen.name}{beside}, {RANGE_VIEWS[self.metric].label}, place={self.place!r})"

    # ---- building

    def _build(self) -> None:
        self._head = ipywidgets.HTML()
        self._metrics = ipywidgets.Dropdown(
            options=[(view.label, name) for name, view in RANGE_VIEWS.items()],
            description="Map shows",
            style=_WIDE,
            layout={"width": "325px"},
        )
        self._compare = ipywidgets.Dropdown(description="beside", style=_WIDE, layout={"width": "430px"})
        self._shows = ipywidgets.ToggleButtons(
            options=button_names(""),
            description="Map of",
            tooltips=["the ranges themselves", "what stands beside them", "the other over this: 1 is white"],
            style={"button_width": "auto", **_WIDE},
        )
        self._scale, self._about = ScaleLegend(), ipywidgets.HTML()
        self._cells = HeatMap()
        self._places = ipywidgets.Dropdown(description="Close up", style=_WIDE, layout={"width": "330px"})
        self._histogram, self._maxima = (ChartView(clickable=False, layout=share_of_row(270)) for _ in range(2))
        self._table = ipywidgets.HTML()
        self._box = CalibrateBox(self._bench) if self._bench is not None else None
        for widget, name in (
            (self._head, "wb-head"),
            (self._metrics, "wb-metrics"),
            (self._compare, "wb-compare"),
            (self._cells, "wb-map"),
            (self._about, "wb-about"),
            (self._places, "wb-places"),
            (self._table, "wb-channels"),
        ):
            widget.add_class(name)

    def _layout(self) -> list[ipywidgets.Widget]:
        row = {"layout": _ROW}
        pictures = [self._histogram, self._maxima, self._table]
        self._shown = ipywidgets.VBox(
            [
                ipywidgets.HBox([self._metrics, self._compare, self._shows], **row),
                self._scale,
                self._cells,
                ipywidgets.HBox([self._places, self._about], **row),
                ipywidgets.HBox(pictures, layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            ]
        )
        if self._box is None:
            return [self._head, self._shown]
        self._calibrate = ipywidgets.Accordion([self._box], titles=("Calibrate",), selected_index=None)
        return [self._head, self._calibrate, self._shown]

    def _listen(self) -> None:
        self._metrics.observe(self._on_metric, "value")
        self._compare.observe(self._on_compare, "value")
        self._shows.observe(self._on_shows, "value")
        self._cells.observe(self._on_cell, "selected")
        self._places.observe(self._on_place, "value")
        self.watch(self._state, self._calibration_changed, "calibration")
        self.watch(self._state, self._recipe_changed, "recipe")
        self.watch(self._state, self._selected_changed, "selected")

    # ---- what the user does becomes a trait

    @from_user
    def _on_metric(self, change: Any) -> None:
        self.metric = change["new"]

    @from_user
    def _on_compare(self, change: Any) -> None:
        self.compare = change["new"]

    @from_user
    def _on_shows(self, change: Any) -> None:
        self.shows = change["new"]

    @from_user
    def _on_cell(self, change: Any) -> None:
        row, column = change["new"]
        if self._map is not None and row >= 0:
            if place := str(self._map.places[row, column]):
                self.place = place
            else:
                self._show_place()

    @from_user
    def _on_place(self, change: Any) -> None:
        if change["new"]:
            self.place = change["new"]

    # ---- the state becomes traits

    @shows_errors
    def _calibration_changed(self, _change: Any) -> None:
        self._take_calibration()

    @shows_errors
    def _recipe_changed(self, _change: Any) -> None:
        if self.compare == SMOOTHING:
            self._fetch_other()

    @shows_errors
    def _selected_changed(self, _change: Any) -> None:
        place = self._place_meant()
        if place and linear_of(place) != linear_of(self.place or "."):
            self.place = place

    def _place_meant(self) -> str:
        """The place of the state's selection; empty where it means none that is shown."""
        place = place_of(self._state.selected, self.place.rpartition(".")[2])
        return place if place and self._knows(place) else ""

    def _knows(self, place: str) -> bool:
        return self._seen is not None and bool((self._seen.table["place"] == place).any())

    # ---- traits become what the user sees

    @traitlets.validate("metric", "place", "shows", "compare")
    def _known(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, str(proposal["value"])
        require_known(name, value, self._allowed(name))
        return value

    def _allowed(self, name: str) -> list[str]:
        if name == "metric":
            return list(RANGE_VIEWS)
        if name == "shows":
            return list(SHOWS)
        if name == "compare":
            # One that was offered and is gone meanwhile is refused in better words when it is fetched.
            return list({**dict(self._compare.options), **self._comparisons.choices()}.values())
        return [*self._seen.table["place"], ""] if self._seen is not None else [""]

    @traitlets.observe("metric", "shows")
    @shows_errors
    def _view_changed(self, _change: Any) -> None:
        self._show_map()
        self._forget_error()

    @traitlets.observe("compare")
    @shows_errors
    def _compare_changed(self, _change: Any) -> None:
        self._other = None
        with self.showing():
            self._compare.value = self.compare
            self._name_buttons()
        if not self.compare:
            self.shows = "this"
            with self.drawing:  # what was being computed says no more
                self.say("")
            self._show_all()
        else:
            self._fetch_other()

    @traitlets.observe("place")
    @shows_errors
    def _place_changed(self, _change: Any) -> None:
        if not self.is_showing and self.place and self._place_meant() != self.place:
            self._state.selected = linear_of(self.place)
        self._show_place()
        self._forget_error()

    def _forget_error(self) -> None:
        """What was just done went well."""
        if "wb-error" in self.status:
            self.say("")

    def _take_calibration(self) -> None:
        calibration = self._state.calibration
        self._show_head(calibration)
        self._shown.layout.display = None if calibration is not None else "none"
        if calibration is None:
            return
        self._seen, self._other = Seen.of("as calibrated", calibration.ranges), None
        with self.showing():
            choices = self._comparisons.choices()
            self._compare.options = list(choices.items())
            if self.compare not in choices.values():
                self.compare = ""
            self._compare.value = self.compare
            self._compare.disabled = len(choices) < 2
            self._name_buttons()
            if not self._knows(self.place):
                self.place = self._place_meant() or hottest_place(self._seen.table)
            self._places.options = list(self._seen.table["place"])
        self._show_all()
        if self.compare:
            self._fetch_other()

    def _name_buttons(self) -> None:
        options = button_names(self.compare)
        if list(self._shows.options) != options:
            self._shows.options = options
            self._shows.value = self.shows

    def _fetch_other(self) -> None:
        """Get what stands beside the ranges, beside the kernel: it reads weights or a file."""
        if self._seen is None:
            return
        wanted = self._wanted
        self.say("computing what stands beside ...")

        def work() -> Seen | None:
            with contextlib.suppress(Cancelled):
                return self._comparisons.fetch(wanted[0], while_wanted(lambda: self._is_wanted(wanted), say))
            return None

        def say(text: str) -> None:
            with self.drawing:
                if self._is_wanted(wanted):
                    self.say(text)

        self.compute(work, lambda other: self._show_other(other) if self._is_wanted(wanted) else None, "other")

    @property
    def _wanted(self) -> tuple[Any, ...]:
        """All that what stands beside depends on."""
        smoothing = self._state.smoothing if self.compare == SMOOTHING else None
        return self.compare, self._state.calibration, smoothing

    def _is_wanted(self, wanted: tuple[Any, ...]) -> bool:
        return not self.closed and wanted == self._wanted

    def _show_other(self, other: Seen | None) -> None:
        if other is None:
            return
        first, self._other = self._other is None, other
        idle = self.compare == SMOOTHING and self._state.smoothing is None
        self.say("The recipe smooths nothing: before and after are the same." if idle else "")
        if first and self.shows == "this":
            self.shows = "ratio"
        self._show_all()

    @property
    def _both(self) -> list[Seen]:
        return [each for each in (self._seen, self._other) if each is not None]

    # ---- showing

    def _show_all(self) -> None:
        self._show_map()
        self._show_place()

    def _show_head(self, calibration: Calibration | None) -> None:
        text = heading(calibration, on_bench=self._bench is not None)
        self._head.value = f'<div class="wb-line">{text}</div>'
        if self._box is not None and (calibration is None) != self._opened_itself:
            self._calibrate.selected_index = 0 if calibration is None else None
            self._opened_itself = calibration is None

    def _show_map(self) -> None:
        seen, other = self._seen, self._other
        if seen is None:
            return
        view, table = chosen_table(self.metric, self.shows, seen, other)
        self._map = range_map(table, self.metric, view)
        cells = color_cells(self._map.values, view)
        with self.drawing, self.showing():
            self._metrics.value, self._shows.value = self.metric, self.shows
            self._shows.layout.display = "none" if other is None else ""  # there is one map
            with self._cells.hold_sync():
                self._cells.rows, self._cells.columns = self._map.sites, self._map.columns
                self._cells.row_groups, self._cells.label = self._map.groups, view.label
                self._cells.texts, self._cells.colors = self._map.texts(), list(cells.colors.flat)
                self._cells.selected = self._map.cell_of(self.place)
        self._scale.show(cells, view, note=why_larger(self.shows, self.metric, self._both))

    def _show_place(self) -> None:
        if self._seen is None or self._map is None or not self.place:
            return
        with self.drawing, self.showing():
            self._places.value = self.place
            self._cells.selected = self._map.cell_of(self.place)
            self._histogram.chart, self._maxima.chart = close_up(self.place, self._both)
            self._about.value = f'<div class="wb-line">{describe(self._both, self.place)}</div>'
            self._table.value = outliers_table(self._both, self.place)
