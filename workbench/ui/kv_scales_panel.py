"""The panel of KV scales: how keys and values are stored, and what that costs attention in every layer.

Computes nothing: errors come from the state's study, and what is chosen goes into the state's recipe.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pandas as pd
import traitlets

from workbench.bench.bench import Bench
from workbench.bench.kv_book import KVBook, kv_frame
from workbench.bench.kv_outliers import out_of_line
from workbench.bench.state import BenchState, Calibration
from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation.kv_table import KVMemory, has_kv_histograms, hottest_layer, kv_layers, kv_memory
from workbench.progress import ProgressEvent
from workbench.quantization.kv_error import KVCurve, KVError, KVStudy
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int8KVCache, Recipe
from workbench.ui import kv_notes
from workbench.ui.chart import draw
from workbench.ui.history_buttons import HistoryButtons
from workbench.ui.kv_charts import GRANULARITIES, LayerPicture, charts_of, maxima_chart
from workbench.ui.kv_study_box import KVStudyBox
from workbench.ui.kv_view import ALL_HEADS, DENSE, KVView
from workbench.ui.kv_wanted import Wanted
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.ranges_comparisons import title
from workbench.ui.recipe_text import RecipeText

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is known of the layers is drawn this often while the others are computed.
_SHOWN_EVERY_S = 0.3
# So long a choice must stand before all layers are computed with it: a slider on its way needs only its own layer.
_REST_S = 0.15


class KVScalesPanel(Panel):
    """Maxima of K and V, the choice of scales, the error of attention's output that they cost, and the bytes saved.

    Args:
        study: errors by scales; the panel makes a state of its own.
        state: a bench, or its state, to share with other panels. On a Bench the panel collects what it needs.

    Attributes:
        state: whose recipe is changed.
        layer: which one the charts show; assigning it shows another.
        head: whose magnitudes are shown; -1 for all together.
        view: the widgets.

    Raises:
        TypeError: both a study and a state.
        WorkbenchError: no such layer or head.
    """

    layer = traitlets.Int(0)
    head = traitlets.Int(ALL_HEADS)

    def __init__(self, study: KVStudy | None = None, *, state: BenchState | None = None) -> None:
        if study is not None and state is not None:
            raise TypeError("KVScalesPanel takes a study, or a state that has one; not both")
        if study is not None:
            state = BenchState(calibration=Calibration(title(study.ranges), study.ranges), kv_study=study)
        self.state = state if state is not None else BenchState()
        self._book: KVBook | None = None
        self._picture: LayerPicture | None = None
        self._pictured: Wanted | None = None  # what the picture is of
        self._whole: Wanted | None = None  # of which all is known
        self._opened = False  # whether a layer is shown that someone may have chosen
        self._how = self.state.recipe.kv_cache or Int8KVCache()
        self.view = KVView(KVStudyBox(self.state), self._choose_cell)
        self.text = RecipeText(self.state)
        super().__init__([], "wb-kv-scales")
        above = self.view.above(HistoryButtons(self.state, self))
        self.children = (*above, self._status, *self.view.below(), self.text)
        self._connect()
        self._take_all()

    # ---- what a user goes on with in code

    @property
    def ranges(self) -> ActivationRanges | None:
        """What calibration saw; None before."""
        if self.state.calibration is not None:
            return self.state.calibration.ranges
        return self.state.kv_study.ranges if self.state.kv_study is not None else None

    @property
    def choice(self) -> Int8KVCache:
        """What is shown: the recipe's choice, or what it would be where the recipe does not quantize."""
        return self._how

    @property
    def error(self) -> KVError | None:
        """What the choice costs the shown layer; None while it is not known."""
        return self._picture.chosen if self._picture is not None else None

    @property
    def curve(self) -> KVCurve | None:
        """The shown layer's error by percentile, as far as it is known."""
        return self._picture.curves.get(self._how.granularity) if self._picture is not None else None

    @property
    def memory(self) -> KVMemory | None:
        """What the KV cache takes; None while the model's sizes are not known."""
        config = self.state.config if isinstance(self.state, Bench) else None
        if config is None and self.state.kv_study is not None:
            config = self.state.kv_study.config
        return kv_memory(config, self.state.recipe) if config is not None else None

    @property
    def frame(self) -> pd.DataFrame:
        """One row per layer, as :func:`workbench.bench.kv_book.kv_frame` gives them."""
        if self.ranges is None:
            return pd.DataFrame()
        return kv_frame(self.ranges, self._how, self.state.smoothing, self._book)

    @property
    def figure(self) -> Figure | None:
        """The charts; before there are errors, the maxima of each layer; None while nothing is known."""
        if self._picture is not None:
            return draw(charts_of(self._picture, self.frame, self._head))
        return draw([maxima_chart(self.ranges)]) if self.ranges is not None else None

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait until everything is shown: what is collected first, and the errors of all layers.

        Raises:
            TimeoutError: it takes longer.
        """
        self.view.study.wait(timeout_s)
        super().settle(timeout_s)

    def close(self) -> None:
        """Stop watching, and take the widgets away; a job that is under way goes on."""
        self._book = None  # ends what is being computed
        if hasattr(self, "text"):  # arguments that were refused leave a panel without
            self.text.close()
        super().close()

    def __repr__(self) -> str:
        if self.ranges is None:
            return "KVScalesPanel(nothing calibrated yet)"
        error = None if self.error is None else self.error.relative_l2
        return f"KVScalesPanel({kv_notes.in_short(self.state.recipe, self.layer, error)})"

    # ---- what the user does becomes the state

    def _connect(self) -> None:
        view = self.view
        view.stored.observe(self._choose_kind, "value")
        view.slider.observe(self._move, "value")
        view.field.observe(self._move, "value")
        view.layer.observe(self._choose_layer, "value")
        view.head.observe(self._choose_head, "value")
        view.depth.observe(self._take_layer, "selected")
        view.curve.observe(self._take_percentile, "selected")
        view.heads.observe(self._take_head, "selected")
        view.maps.after.observe(self._show_values, "value")
        for callback, trait in (
            (self._recipe_changed, "recipe"),
            (self._selection_changed, "selected"),
            (self._data_changed, "calibration"),
            (self._data_changed, "kv_study"),
            (self._data_changed, "search"),
            (lambda _: self._refresh(), "locked"),  # what is said of a remedy
        ):
            self.watch(self.state, callback, trait)

    @from_user
    def _choose_kind(self, change: Any) -> None:
        kind = change["new"]
        self.state.set_kv_cache(None if kind == DENSE else Int8KVCache(kind, self._how.percentile))

    @from_user
    def _move(self, change: Any) -> None:
        self.state.set_kv_cache(Int8KVCache(self._how.granularity, round(change["new"], 4)))

    @from_user
    def _choose_layer(self, change: Any) -> None:
        self.layer = change["new"]

    @from_user
    def _choose_head(self, change: Any) -> None:
        self.head = change["new"]

    @from_user
    def _choose_cell(self, part: str, layer: int, head: int) -> None:
        self._look_at(layer, head, part)

    @from_user
    def _take_layer(self, change: Any) -> None:
        mark, index = change["new"]
        if 0 <= mark < len(GRANULARITIES):
            self.layer = int(self.frame["layer"].iloc[index])

    @from_user
    def _take_percentile(self, change: Any) -> None:
        picture, (mark, index) = self._picture, change["new"]
        if picture is None or not 0 <= mark < len(picture.curves):
            return
        granularity, curve = list(picture.curves.items())[mark]
        self.state.set_kv_cache(Int8KVCache(granularity, curve.percentiles[index]))

    @from_user
    def _take_head(self, change: Any) -> None:
        mark, index = change["new"]
        if mark >= 0:
            self.head = ALL_HEADS if index == self.head else index

    @from_user
    def _show_values(self, _change: Any) -> None:
        with self.drawing:
            self.view.maps.show_values()

    # ---- the state becomes what the user sees

    @property
    def _head(self) -> int | None:
        return None if self.head == ALL_HEADS else self.head

    def _look_at(self, layer: int, head: int, part: str = "key") -> None:
        with self.showing():
            self.layer, self.head = layer, head
        self.state.selected = f"layers.{layer}.attention.{part}"
        self._show_place()

    @traitlets.validate("layer", "head")
    def _known(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, int(proposal["value"])
        ranges = self.ranges
        known = [] if ranges is None else kv_layers(ranges)
        if name == "head":
            heads = len(ranges.keys[known[0]]) if ranges is not None and known else 0
            known = [ALL_HEADS, *range(heads)]
        if value not in known and value != self.trait_defaults(name):
            allowed = f"{known[0]} to {known[-1]}" if known else "none before a model is calibrated"
            raise WorkbenchError(f"there is no {name} {value}", allowed=allowed)
        return value

    @traitlets.observe("layer")
    @shows_errors
    def _layer_changed(self, _change: Any) -> None:
        if not self.is_showing:  # chosen here, by hand or in code: the other panels follow
            self.state.selected = f"layers.{self.layer}.attention.key"
            self._show_place()

    @traitlets.observe("head")
    @from_user
    def _head_changed(self, _change: Any) -> None:
        self._show_place()

    @shows_errors
    def _selection_changed(self, change: Any) -> None:
        layer = self._layer_meant(change["new"])
        if layer is not None and layer != self.layer:
            with self.showing():
                self.layer = layer
            self._show_place()

    def _layer_meant(self, tap: str) -> int | None:
        parts = tap.split(".")
        number = int(parts[1]) if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit() else None
        return number if self.ranges is not None and number in kv_layers(self.ranges) else None

    @shows_errors
    def _recipe_changed(self, change: Any) -> None:
        before, now = change["old"], change["new"]
        self._show_choice()
        parts = ("kv_cache", "weights", "keep")
        if not isinstance(before, Recipe) or any(getattr(before, each) != getattr(now, each) for each in parts):
            self._refresh()

    @shows_errors
    def _data_changed(self, _change: Any) -> None:
        self._take_all()

    def _take_all(self) -> None:
        """Everything but the recipe is new."""
        state, ranges = self.state, self.ranges
        study = state.kv_study
        if study is None:
            self._book = self._picture = self._pictured = None
        elif self._book is None or self._book.study is not study or self._book.search is not state.search:
            self._book, self._picture = KVBook(study, state.search), None
        self.view.heading.value, self.view.missing.value = kv_notes.title(state), kv_notes.what_is_missing(state)
        for widget, needed in (
            (self.view.controls, ranges),
            (self.view.maps, ranges),
            (self.view.errors, study),
            (self.text, ranges),
        ):
            widget.layout.display = "" if needed is not None else "none"
        self.view.study.collect()
        if ranges is not None:
            self._show_ranges(ranges)
        if study is not None:
            self.view.errors_note.value = kv_notes.about_errors(*study.shape)
        self._show_choice()
        self._show_place()

    def _show_ranges(self, ranges: ActivationRanges) -> None:
        layers = kv_layers(ranges)
        with self.drawing, self.showing():
            self.view.set_sizes(len(layers), len(ranges.keys[layers[0]]))
            self.view.maps.show(ranges)
            meant = self._layer_meant(self.state.selected)
            if meant is not None:
                self.layer = meant
            elif not self._opened or self.layer not in layers:
                self.layer = hottest_layer(ranges)
        self._opened = True
        self.view.slider.disabled = self.view.field.disabled = not has_kv_histograms(ranges)

    def _show_choice(self) -> None:
        recipe, can_clip = self.state.recipe, self.ranges is None or has_kv_histograms(self.ranges)
        int8 = recipe.kv_cache is not None
        self._how = recipe.kv_cache or (self._how if can_clip else Int8KVCache(self._how.granularity))
        with self.drawing, self.showing():
            self.view.show_choice(self._how, int8=int8)
        self.view.choice_note.value = kv_notes.about_choice(recipe, self._how, can_clip=can_clip)
        self.view.memory.value = kv_notes.memory_table(self.memory, int8=int8)

    def _show_place(self) -> None:
        with self.drawing, self.showing():
            self.view.show_place(self.layer, self._head)
        with self.drawing:
            if self._picture is not None and self._picture.layer == self.layer:
                self._draw()
        if not self._pictured == self._whole == self._now:  # what was begun may have ended when a person went elsewhere
            self._refresh()

    @property
    def _now(self) -> Wanted | None:
        """All that errors depend on; None while there is no study."""
        return None if self._book is None else Wanted(self._book, self._how, self.state.smoothing, self.layer)

    def _refresh(self) -> None:
        """Compute what the charts show; the newest request wins."""
        wanted = self._now
        if wanted is not None:
            self.compute(wanted.picture, lambda picture: self._show_picture(picture, wanted), "picture")

    def _show_picture(self, picture: LayerPicture, wanted: Wanted) -> None:
        if wanted != self._now:
            return
        self._picture, self._pictured = picture, wanted
        self._draw()
        self.say("")
        self.compute(lambda: self._rest(wanted), lambda _: None, "rest")

    def _rest(self, wanted: Wanted) -> None:
        """The layer's curves, and then all other layers; what is known is drawn on the way."""
        began = drawn = time.monotonic()
        while time.monotonic() - began < _REST_S and wanted == self._now:
            time.sleep(0.02)

        def report(event: ProgressEvent) -> None:
            nonlocal drawn
            if wanted != self._now:
                raise Cancelled("something else is shown by now")
            if time.monotonic() - drawn > _SHOWN_EVERY_S:
                self._show_known(wanted)
                self.say(f"computing {event.task}: {event.done:,.0f} of {event.total:,.0f}")
                drawn = time.monotonic()

        with contextlib.suppress(Cancelled):
            wanted.compute_rest(report)
            self._whole = wanted
            self._show_known(wanted)
            if wanted == self._now:
                self.say("")

    def _show_known(self, wanted: Wanted) -> None:
        """Draw what the book knows by now."""
        with self.drawing:
            # The picture may be of another layer yet, where a person went there and came back.
            if self._picture is not None and wanted == self._pictured == self._now:
                self._picture = wanted.with_known(self._picture)
                self._draw()

    def _draw(self) -> None:
        picture, view, book = self._picture, self.view, self._book
        if picture is None or book is None:
            return
        frame, smoothing = self.frame, self.state.smoothing
        view.draw(charts_of(picture, frame, self._head))
        view.layer_note.value = kv_notes.about_layer(picture, book, smoothing)
        view.layers_note.value = kv_notes.about_layers(frame)
        spoiled = out_of_line(book, self._how, smoothing)
        view.warning.value = kv_notes.about_outliers(spoiled, frame, self._how, self.state)
        view.maps.show_smoothed([book.smoothed_values(int(layer), smoothing) for layer in frame["layer"]])
