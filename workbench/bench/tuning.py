"""Long work on smoothing groups as jobs: searching the alpha of each, and measuring the error of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from workbench.bench.alpha_book import AlphaBook
from workbench.bench.job import Job
from workbench.bench.state import BenchState, group_name, groups_of, is_kept, with_alphas
from workbench.errors import Cancelled, RecipeError, WorkbenchError
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.alpha_search import ORDER, AlphaCurve
from workbench.recipe import SMOOTHING_GROUPS, Recipe, SmoothQuant

_serial = count(1)

Told = Callable[[AlphaCurve, SmoothQuant], None]


def tuning_job(state: BenchState, groups: Sequence[tuple[int, str]], title: str, told: Told | None = None) -> Job:
    """A job that sets each group's alpha to the least output error on held-out rows; locked groups keep theirs.

    The whole is one step to undo. Groups that the recipe does not smooth are passed over, unless there are no others:
    then it comes to smooth them. So are those that the recipe keeps out of quantization. What a person changes
    meanwhile holds: a lock, an alpha, another kind of recipe, which ends the job.

    Args:
        state: holds the recipe and the search.
        groups: which, by layer and name.
        title: of the job.
        told: called in the job's thread with each group's curve, and the smoothing that it was computed with.

    Returns:
        The job; its result is the alphas by the groups' names.

    Raises:
        WorkbenchError: there are no held-out rows yet.
    """
    search = state.search
    if search is None:
        raise WorkbenchError("there are no held-out rows to tune on", fix="calibrate first: bench.calibrate().start()")

    def work(report: Reporter) -> dict[str, float]:
        run = _Tuning(state, groups, f"tune {next(_serial)}")
        for done, (layer, group) in enumerate(run.places):
            report(ProgressEvent("tune alpha", done, len(run.places), "groups"))
            how = run.smoothing(layer, group)
            if how is None:
                continue
            curve = next(iter(search.tune(how, [(layer, group)])))
            if told is not None:
                told(curve, how)
            run.take(curve)
        report(ProgressEvent("tune alpha", len(run.places), len(run.places), "groups"))
        return run.found

    return Job(title, work, state.jobs, if_stopped="the alphas found so far stay; Undo takes them back")


class _Tuning:
    """One tuning: asks the state before each group and after it, as a person goes on changing the recipe meanwhile.

    Raises:
        RecipeError: every group is kept out of quantization.
    """

    def __init__(self, state: BenchState, groups: Sequence[tuple[int, str]], step: str) -> None:
        self._state, self._step = state, step
        self._began_as = state.recipe.weights
        self.found: dict[str, float] = {}
        asked = [place for place in groups if not is_kept(state.recipe, *place)]
        if groups and not asked:
            raise RecipeError(
                f"the recipe keeps {_named(groups)} in {state.recipe.dtype}: there are no integers to tune for",
                fix="take the layer out of keep first",
            )
        how = state.smoothing or SmoothQuant()
        smoothed = [(layer, group) for layer, group in asked if group in how.groups]
        self._joining = () if smoothed else tuple({group for _, group in asked})
        # Within a layer those come first whose scales change another group's rows.
        self.places = sorted(set(smoothed or asked), key=lambda place: (place[0], ORDER.index(place[1])))

    def smoothing(self, layer: int, group: str) -> SmoothQuant | None:
        """The smoothing to tune a group with, as the recipe is now; None where the group is to be left alone.

        Raises:
            Cancelled: the recipe has become one of another kind.
        """
        recipe = self._state.recipe
        how = self._of(recipe)
        left_alone = group_name(layer, group) in self._state.locked or is_kept(recipe, layer, group)
        return None if left_alone or group not in how.groups else how

    def take(self, curve: AlphaCurve) -> None:
        """Put the best alpha of a group into the recipe, unless the group was locked meanwhile.

        Raises:
            Cancelled: the recipe has become one of another kind.
        """
        alpha = curve.best[0]

        def edit(recipe: Recipe) -> Recipe:
            how = self._of(recipe)
            if curve.name in self._state.locked:
                return recipe
            self.found[curve.name] = alpha
            return replace(recipe, weights=with_alphas(how, {curve.name: alpha}))

        self._state.change(edit, self._step, within_s=math.inf)

    def _of(self, recipe: Recipe) -> SmoothQuant:
        """A recipe's smoothing; only the first alpha may turn one of another kind into SmoothQuant."""
        now = recipe.weights
        if not isinstance(now, SmoothQuant) and (self.found or type(now) is not type(self._began_as)):
            kind = "none" if now is None else now.kind
            raise Cancelled(
                f"the recipe's weights are {kind} now, and tuning leaves them so; "
                "Undo brings SmoothQuant back with the alphas found so far"
            )
        how = now if isinstance(now, SmoothQuant) else SmoothQuant()
        if not self._joining:
            return how
        return replace(how, groups=tuple(each for each in SMOOTHING_GROUPS if each in {*how.groups, *self._joining}))


def measuring_job(state: BenchState, book: AlphaBook, told: Callable[[], None]) -> Job:
    """A job that computes the error of every quantized smoothing group that has none at its present alpha.

    Args:
        state: holds the recipe.
        book: computes the errors, and keeps them.
        told: called in the job's thread after each group.

    Returns:
        The job; its result is how many were computed.
    """

    def work(report: Reporter) -> int:
        how = state.smoothing or SmoothQuant()
        every = groups_of("", book.search.config.num_layers)
        places = [place for place in every if not is_kept(state.recipe, *place)]
        missing = [place for place in places if book.known_error(*place, how) is None]
        for done, place in enumerate(missing):
            report(ProgressEvent("measure errors", done, len(missing), "groups"))
            book.error(*place, how)
            told()
        return len(missing)

    return Job("measure the error of all groups", work, state.jobs, if_stopped="the errors measured so far stay")


def _named(groups: Sequence[tuple[int, str]]) -> str:
    """Groups in words: the first one, and how many more."""
    first = group_name(*groups[0])
    return first if len(groups) == 1 else f"{first} and {len(groups) - 1} more groups"
