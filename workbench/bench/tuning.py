"""Long work on smoothing groups as jobs: searching the alpha of each, and measuring the error of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from workbench.bench.alpha_book import AlphaBook
from workbench.bench.job import Job
from workbench.bench.state import BenchState, group_name, groups_of
from workbench.errors import WorkbenchError
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.alpha_search import AlphaCurve, tuned
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant

_serial = count(1)

Told = Callable[[AlphaCurve, SmoothQuant], None]


def tuning_job(state: BenchState, groups: Sequence[tuple[int, str]], title: str, told: Told | None = None) -> Job:
    """A job that sets each group's alpha to the least output error on held-out rows; locked groups keep theirs.

    The whole is one step to undo. Groups that the recipe does not smooth are passed over, unless there are no others:
    then it comes to smooth them.

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
        how, chosen = _to_tune(state.smoothing or SmoothQuant(), groups)
        step = f"tune {next(_serial)}"
        found: dict[str, float] = {}
        for curve in search.tune(
            how, [each for each in chosen if group_name(*each) not in state.locked], report=report
        ):
            found[curve.name] = curve.best[0]
            if told is not None:
                told(curve, how)
            how = tuned(how, [curve])
            state.set_alphas({curve.name: curve.best[0]}, step, within_s=math.inf)
        return found

    return Job(title, work, state.jobs, if_stopped="the alphas found so far stay; Undo takes them back")


def measuring_job(state: BenchState, book: AlphaBook, told: Callable[[], None]) -> Job:
    """A job that computes the error of every smoothing group that has none at its present alpha.

    Args:
        state: holds the recipe.
        book: computes the errors, and keeps them.
        told: called in the job's thread after each group.

    Returns:
        The job; its result is how many were computed.
    """

    def work(report: Reporter) -> int:
        how = state.smoothing or SmoothQuant()
        places = groups_of("", book.search.config.num_layers)
        missing = [place for place in places if book.known_error(*place, how) is None]
        for done, place in enumerate(missing):
            report(ProgressEvent("measure errors", done, len(missing), "groups"))
            book.error(*place, how)
            told()
        return len(missing)

    return Job("measure the error of all groups", work, state.jobs, if_stopped="the errors measured so far stay")


def _to_tune(how: SmoothQuant, groups: Sequence[tuple[int, str]]) -> tuple[SmoothQuant, Sequence[tuple[int, str]]]:
    """The groups that can be tuned, and the smoothing that has them."""
    smoothed = [(layer, group) for layer, group in groups if group in how.groups]
    if smoothed:
        return how, smoothed
    wanted = {group for _, group in groups}
    return replace(how, groups=tuple(each for each in SMOOTHING_GROUPS if each in wanted or each in how.groups)), groups
