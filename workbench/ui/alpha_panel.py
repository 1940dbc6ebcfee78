"""The alpha panel: SmoothQuant's migration strength for all groups and for each, with what it costs.

Computes nothing: errors come from the state's search, and what is chosen goes into the state's recipe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workbench.bench.alpha_book import AlphaBook, groups_frame
from workbench.bench.bench import QUICK_LOOK, Bench
from workbench.bench.job import Job
from workbench.bench.judging import CURRENT, Judgement, judging_job
from workbench.bench.state import BenchState, group_name, groups_of, is_kept, kept_groups, split_group
from workbench.bench.tuning import measuring_job, tuning_job
from workbench.errors import Cancelled, RecipeError, WorkbenchError
from workbench.progress import ProgressEvent
from workbench.quantization.alpha_search import AlphaCurve, AlphaSearch
from workbench.quantization.smoothing_trial import GroupError
from workbench.recipe import SMOOTHING_GROUPS, Recipe, SmoothQuant
from workbench.ui import alpha_notes
from workbench.ui.alpha_charts import CURVE_MARK, GroupPicture, charts_of, percent
from workbench.ui.alpha_map import GROUPS, AlphaMap
from workbench.ui.alpha_rows import RowCallbacks, RowView
from workbench.ui.alpha_view import AlphaView
from workbench.ui.alpha_wanted import Wanted, group_meant
from workbench.ui.chart import draw
from workbench.ui.history_buttons import HistoryButtons
from workbench.ui.job_panel import JobPanel
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.recipe_text import RecipeText


class AlphaPanel(Panel):
    """Sliders for every smoothing group, the error each alpha costs, the whole curve, and a search for the best.

    Args:
        search: errors by alpha; the panel makes a state of its own.
        state: a bench, or its state, to share with other panels.
        group: the group to begin with, or several of them (``layers.12``, ``layers.12.mlp``): then the first.

    Attributes:
        state: whose recipe is tuned.
        group: the smoothing group that the charts show (``layers.12.down``); assigning it shows another.
        view: the widgets.
        judgement: what the whole model had to say last; None before it was asked.

    Raises:
        TypeError: both a search and a state.
        RecipeError: no group is called so.
    """

    group = traitlets.Unicode("")

    def __init__(self, search: AlphaSearch | None = None, *, state: BenchState | None = None, group: str = "") -> None:
        if search is not None and state is not None:
            raise TypeError("AlphaPanel takes a search, or a state that has one; not both")
        self.state = state if state is not None else BenchState(Recipe(weights=SmoothQuant()), search=search)
        if self.num_layers:
            groups_of(group, self.num_layers)  # refused before anything is built
        self._first = group
        self._book: AlphaBook | None = None
        self._picture: GroupPicture | None = None
        self.judgement: Judgement | None = None
        callbacks = RowCallbacks(self._choose, self._move, self._lock, self._reset)
        self.view = AlphaView(callbacks, AlphaMap(self._choose_place, self._draw_map))
        self.text = RecipeText(self.state)
        super().__init__([], "wb-alpha")
        above = self.view.arranged(HistoryButtons(self.state, self))
        self.children = (*above, self._status, *self.view.below(), self.text)
        self._connect()
        self._search_changed()

    # ---- what a user goes on with in code

    @property
    def num_layers(self) -> int:
        """Of the model; 0 while none is known."""
        if self.state.search is not None:
            return self.state.search.config.num_layers
        return self.state.config.num_layers if isinstance(self.state, Bench) else 0

    @property
    def error(self) -> GroupError | None:
        """What the shown group costs at its alpha; None while nothing is known."""
        return self._picture.now if self._picture is not None else None

    @property
    def curve(self) -> AlphaCurve | None:
        """The shown group's error over alpha; None while it is not known."""
        return self._picture.curve if self._picture is not None else None

    @property
    def frame(self) -> pd.DataFrame:
        """One row per smoothing group, as :func:`workbench.bench.alpha_book.groups_frame` gives them."""
        kept = kept_groups(self.state.recipe, self.num_layers)
        return groups_frame(self._how, self.state.locked, self.num_layers, self._book, kept)

    @property
    def figure(self) -> Figure | None:
        """The three charts of the shown group; None while nothing is known."""
        return draw(charts_of(self._picture)) if self._picture is not None else None

    def __repr__(self) -> str:
        if self._picture is None:
            return f"AlphaPanel({alpha_notes.why_no_picture(self.state, self.group, computing=self.is_computing)})"
        now = self._picture.now
        alpha = "not smoothed" if now.alpha is None else f"alpha {now.alpha:g}"
        return f"AlphaPanel({self._picture.name}: {alpha}, output error {percent(now.error)})"

    # ---- what the user does becomes the state

    def _connect(self) -> None:
        view, work = self.view, self.view.work
        view.all_groups.observe(self._move_all, "value")
        view.layer.observe(self._choose_layer, "value")
        view.charts[0].observe(self._take_from_curve, "selected")
        view.reset_all.on_click(self._reset_all)
        work.tune_group.on_click(lambda _: self._tune(self.group))
        work.tune_layer.on_click(lambda _: self._tune(f"layers.{self._layer}"))
        work.tune_all.on_click(lambda _: self._tune(""))
        work.judge.on_click(self._judge)
        view.map.measure_button.on_click(self._measure)
        for callback, trait in (
            (self._recipe_changed, "recipe"),
            (self._locks_changed, "locked"),
            (self._selection_changed, "selected"),
            (self._search_changed, "search"),
            (self._search_changed, "calibration"),
        ):
            self.watch(self.state, callback, trait)

    @from_user
    def _move(self, group: str, alpha: float) -> None:
        name = group_name(self._layer, group)
        try:
            # First the recipe: else the rows would put the slider back for a moment.
            self.state.set_alpha(round(alpha, 4), name)
        except WorkbenchError:
            self._show_controls()  # the slider goes back
            raise
        self.group = name

    @from_user
    def _move_all(self, change: Any) -> None:
        self.state.set_alpha(round(change["new"], 4))

    @from_user
    def _take_from_curve(self, change: Any) -> None:
        mark, index = change["new"]
        if mark == CURVE_MARK and self._picture is not None and self._picture.curve is not None:
            self.state.set_alpha(self._picture.curve.alphas[index], self._picture.name)

    @from_user
    def _choose(self, group: str) -> None:
        self.group = group_name(self._layer, group)

    @from_user
    def _choose_place(self, layer: int, group: str) -> None:
        self.group = group_name(layer, group)

    @from_user
    def _choose_layer(self, change: Any) -> None:
        self.group = group_name(change["new"], split_group(self.group)[1])

    @from_user
    def _lock(self, group: str, locked: bool) -> None:
        name = group_name(self._layer, group)
        (self.state.lock if locked else self.state.unlock)(name)

    @from_user
    def _reset(self, group: str) -> None:
        self.state.reset_alphas([group_name(self._layer, group)])

    @from_user
    def _reset_all(self, _button: Any) -> None:
        self.state.reset_alphas()

    # ---- long work

    @from_user
    def _tune(self, groups: str) -> None:
        places = groups_of(groups, self.num_layers)
        told = self._book.note if self._book is not None else None
        self.view.work.start(tuning_job(self.state, places, f"tune {groups or 'all groups'}", told), self._work_ended)

    @from_user
    def _measure(self, _button: Any) -> None:
        if self._book is not None:
            self.view.work.start(measuring_job(self.state, self._book, self._draw_map), self._work_ended)

    @from_user
    def _judge(self, _button: Any) -> None:
        assert isinstance(self.state, Bench)  # the button is there on a bench only
        self.view.work.start(judging_job(self.state), self._judged)

    @shows_errors
    def _work_ended(self, _job: Job) -> None:
        self._show_row_errors()
        self._draw_map()

    @shows_errors
    def _judged(self, job: Job) -> None:
        if job.state == "done":
            self.judgement = job.result()
            self._show_judgement()

    # ---- the state becomes what the user sees

    @property
    def _layer(self) -> int:
        return split_group(self.group)[0]

    @property
    def _is_kept(self) -> bool:
        """Whether the shown group is left without integers."""
        return bool(self.group) and is_kept(self.state.recipe, *split_group(self.group))

    @property
    def _how(self) -> SmoothQuant:
        """The recipe's smoothing; what it would be where the recipe has none."""
        return self.state.smoothing or SmoothQuant()

    @shows_errors
    def _search_changed(self, _change: Any = None) -> None:
        search, layers = self.state.search, self.num_layers
        if self._book is None or self._book.search is not search:
            self._book = AlphaBook(search) if search is not None else None
            self._picture = None
        if layers and not self.group:
            self._begin(layers)
        self._show_what_is_missing()
        self._show_controls()
        self._refresh()

    def _begin(self, layers: int) -> None:
        """The model's size is known now."""
        with self.showing():
            self.view.layer.max = layers - 1
            if not self._first:
                self.group = group_meant(self.state.selected, self.group, self.num_layers) or group_name(0, GROUPS[0])
        if self._first:
            self.group = group_name(*groups_of(self._first, layers)[0])

    @shows_errors
    def _recipe_changed(self, _change: Any) -> None:
        self._show_controls()
        self._show_judgement()
        self._refresh()

    @shows_errors
    def _locks_changed(self, _change: Any) -> None:
        self._show_controls()
        self._draw_map()

    @shows_errors
    def _selection_changed(self, change: Any) -> None:
        name = group_meant(change["new"], self.group, self.num_layers)
        if name is not None:
            with self.showing():
                self.group = name

    @traitlets.validate("group")
    def _known_group(self, proposal: Any) -> str:
        name = str(proposal["value"])
        layer, _ = split_group(name)
        if layer >= self.num_layers:
            known = f"layers 0 to {self.num_layers - 1}" if self.num_layers else "none before a model is known"
            raise RecipeError(f"there is no group {name!r}", allowed=known)
        return name

    @traitlets.observe("group")
    @shows_errors
    def _group_changed(self, _change: Any) -> None:
        layer, group = split_group(self.group)
        if not self.is_showing:  # chosen here, by hand or in code: the other panels follow
            self.state.selected = f"layers.{layer}.{SMOOTHING_GROUPS[group]}"
        with self.drawing, self.showing():
            self.view.layer.value = layer
            self.view.map.select(layer, group)
        self._show_controls()
        self._refresh()

    def _show_what_is_missing(self) -> None:
        view, search = self.view, self.state.search
        view.drawn.layout.display = "none" if search is None else ""
        judges = isinstance(self.state, Bench)
        view.work.judge.layout.display = "" if judges else "none"
        if search is not None:
            view.missing.children = ()
            view.error_note.value = alpha_notes.about_errors(search, can_judge=judges)
            return
        view.say_what_is_missing(alpha_notes.what_is_missing(self.state))
        if isinstance(self.state, Bench) and not view.offers:
            view.offer(JobPanel(self.state.calibrate(QUICK_LOOK)))

    def _show_controls(self) -> None:
        if not self.group:
            return
        how, view = self._how, self.view
        layer, active = split_group(self.group)
        with self.drawing, self.showing():
            view.all_groups.value = how.alpha
            view.recipe_note.value = alpha_notes.about_recipe(self.state)
            for group, row in view.rows.items():
                name, alpha = group_name(layer, group), how.alpha_of(layer, group)
                locked = name in self.state.locked
                note = alpha_notes.row_note(self.state, layer, group)
                own = name in how.alpha_by_group
                row.show(RowView(how.alpha if alpha is None else alpha, note, own, locked, group == active))
        self._show_row_errors()

    def _show_judgement(self) -> None:
        outdated = self.judgement is not None and self.judgement.recipes[CURRENT] != self.state.recipe
        self.view.work.show_judgement(self.judgement, outdated=outdated)

    def _show_row_errors(self) -> None:
        with self.drawing:
            for group, row in self.view.rows.items():
                row.show_error(alpha_notes.row_error(self.state, self._book, self._layer, group))

    # ---- what takes a while

    @property
    def _now(self) -> Wanted | None:
        """All that the charts depend on; None while there is nothing to compute."""
        if self._book is None or not self.group or self._is_kept:
            return None
        return Wanted(self._book, self.group, self._how)

    def _refresh(self) -> None:
        """Compute what the charts show; the newest request wins."""
        wanted = self._now
        self._draw_map()
        if wanted is None:
            self._show_nothing()
            return
        if self._picture is None or self._picture.name != wanted.name:
            self.say(f"computing the error of {wanted.name} ...")
        self.compute(wanted.picture, lambda picture: self._show_picture(picture, wanted), "picture")

    def _show_nothing(self) -> None:
        """No chart: there is no book, or the group is not quantized."""
        with self.drawing:
            self._picture = None
            self.view.draw(None)
            kept = self._book is not None and self._is_kept
            self.say(alpha_notes.about_kept(self.state, self.group) if kept else "")

    def _show_picture(self, picture: GroupPicture, wanted: Wanted) -> None:
        if wanted != self._now:
            return
        self._picture = picture
        self.view.draw(picture)
        self.say("")
        self._show_row_errors()
        self._draw_map()
        self.compute(lambda: self._rest(picture, wanted), lambda whole: self._show_rest(whole, wanted), "rest")

    def _rest(self, picture: GroupPicture, wanted: Wanted) -> GroupPicture | None:
        """The curve, and the errors of the layer's other groups; None when something else is shown by now."""

        def report(_event: ProgressEvent) -> None:
            if self.closed or wanted != self._now:
                raise Cancelled("something else is shown by now")

        try:
            return wanted.with_rest(picture, report)
        except Cancelled:
            return None

    def _show_rest(self, whole: GroupPicture | None, wanted: Wanted) -> None:
        if whole is None or wanted != self._now:
            return
        had = self._picture is not None and self._picture.curve is not None
        self._picture = whole
        if not had:
            self.view.draw(whole)
        self._show_row_errors()
        self._draw_map()

    def _draw_map(self) -> None:
        """Colour the map anew."""
        if self.group and self.state.search is not None:
            self.compute(self._map_values, lambda values: self.view.map.show(values, self._locked_places()), "map")

    def _map_values(self) -> NDArray[np.float64]:
        """``[groups, layers]`` of what the map shows; NaN where nothing is known."""
        column = self.frame[self.view.map.shows.value]
        return np.asarray(column, np.float64).reshape(self.num_layers, len(GROUPS)).T

    def _locked_places(self) -> set[tuple[int, str]]:
        return {split_group(name) for name in self.state.locked}
