"""What is known of smoothing groups' errors, kept by what each error depends on, so that nothing is computed twice.

An error depends on the group's own alpha, on the granularities, and on the alpha of the group that reads its last rows;
what a recipe says of other groups leaves it alone. Knows no widgets, and changes no recipe.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import replace

import pandas as pd

from workbench.bench.state import group_name, groups_of
from workbench.progress import Reporter, silent
from workbench.quantization.alpha_search import READERS, AlphaCurve, AlphaSearch
from workbench.quantization.smoothing_trial import GroupError
from workbench.recipe import SmoothQuant

# layer, group, weight and activation granularity, alpha of the group that reads this one's last rows
_Conditions = tuple[int, str, str, str, float | None]


class AlphaBook:
    """Errors and curves of one search. Several threads may ask at once.

    Args:
        search: computes what is not known yet.
    """

    def __init__(self, search: AlphaSearch) -> None:
        self.search = search
        self._lock = threading.Lock()
        self._errors: dict[_Conditions, dict[float | None, float]] = {}
        self._curves: dict[_Conditions, AlphaCurve] = {}
        self._unsmoothed: tuple[_Conditions, GroupError] | None = None

    def error(self, layer: int, group: str, how: SmoothQuant) -> GroupError:
        """The group as ``how`` smooths and quantizes it, computed now: its maxima are not kept.

        Raises:
            RecipeError, CheckpointError: as :meth:`AlphaSearch.error`.
        """
        found = self.search.error(layer, group, how)
        self._note(layer, group, how, {found.alpha: found.error})
        return found

    def unsmoothed(self, layer: int, group: str, how: SmoothQuant) -> GroupError:
        """The group quantized as it is, the others as ``how`` says; the one asked for last is kept.

        Raises:
            RecipeError, CheckpointError: as :meth:`AlphaSearch.error`.
        """
        conditions, kept = _conditions(layer, group, how), self._unsmoothed
        if kept is None or kept[0] != conditions:
            kept = self._unsmoothed = conditions, self.error(layer, group, without(how, group))
        return kept[1]

    def curve(self, layer: int, group: str, how: SmoothQuant, report: Reporter = silent) -> AlphaCurve:
        """The group's errors over alpha, computed where they are not known.

        Raises:
            RecipeError, CheckpointError: as :meth:`AlphaSearch.curve`.
            Cancelled: the reporter stopped it.
        """
        known = self.known_curve(layer, group, how)
        if known is None:
            known = self.search.curve(layer, group, how, report=report)
            self.note(known, how)
            with self._lock:
                self._curves[_conditions(layer, group, how)] = known
        return known

    def note(self, curve: AlphaCurve, how: SmoothQuant) -> None:
        """Take over the errors of a curve that was computed elsewhere, with ``how``."""
        errors: dict[float | None, float] = dict(zip(curve.alphas, curve.errors, strict=True))
        self._note(curve.layer, curve.group, how, errors)

    # ---- what is known without computing

    def known_error(self, layer: int, group: str, how: SmoothQuant) -> float | None:
        """The error as ``how`` has the group; None where it was not computed."""
        return self._of(layer, group, how).get(how.alpha_of(layer, group))

    def known_curve(self, layer: int, group: str, how: SmoothQuant) -> AlphaCurve | None:
        """The curve, where it was computed."""
        return self._curves.get(_conditions(layer, group, how))

    def known_best(self, layer: int, group: str, how: SmoothQuant) -> tuple[float, float] | None:
        """The alpha of the least error among those that were tried, and that error; None before any."""
        tried = [(error, alpha) for alpha, error in self._of(layer, group, how).items() if alpha is not None]
        if not tried:
            return None
        error, alpha = min(tried)
        return alpha, error

    def _of(self, layer: int, group: str, how: SmoothQuant) -> dict[float | None, float]:
        with self._lock:
            return dict(self._errors.get(_conditions(layer, group, how), {}))

    def _note(self, layer: int, group: str, how: SmoothQuant, errors: dict[float | None, float]) -> None:
        with self._lock:
            self._errors.setdefault(_conditions(layer, group, how), {}).update(errors)


def groups_frame(
    how: SmoothQuant,
    locked: Collection[str],
    num_layers: int,
    book: AlphaBook | None = None,
    kept: Collection[str] = (),
) -> pd.DataFrame:
    """Every smoothing group of a model, layer by layer.

    Args:
        how: alphas and granularities.
        locked: names of groups that keep their alpha.
        num_layers: of the model.
        book: what is known of errors.
        kept: names of groups that the recipe keeps out of quantization: no integers, so their error is 0 and no alpha
            is the best.

    Returns:
        One row per group: ``group``, ``layer``; ``own`` (whether its alpha is not that of all), ``locked``, ``kept``;
        ``alpha`` (NaN: not smoothed), ``error`` (relative L2 at that alpha), ``best_tried`` and ``best_tried_error``:
        of the alphas that were tried so far, which may be one, that of least error; ``plain_error`` of the group
        quantized without smoothing; NaN where the book knows nothing.
    """
    rows = []
    for layer, group in groups_of("", num_layers):
        name = group_name(layer, group)
        facts = (name, layer, name in how.alpha_by_group, name in locked, name in kept, how.alpha_of(layer, group))
        if name in kept:
            errors: tuple[float | None, ...] = (0.0, None, None, 0.0)
        elif book is None:
            errors = (None, None, None, None)
        else:
            best = book.known_best(layer, group, how) or (None, None)
            plain = book.known_error(layer, group, without(how, group))
            errors = (book.known_error(layer, group, how), *best, plain)
        rows.append((*facts, *errors))
    numbers = ["alpha", "error", "best_tried", "best_tried_error", "plain_error"]
    frame = pd.DataFrame(rows, columns=["group", "layer", "own", "locked", "kept", *numbers])
    return frame.astype(dict.fromkeys(numbers, float))


def without(how: SmoothQuant, group: str) -> SmoothQuant:
    """``how`` with one kind of group left as it is in every layer."""
    alphas = {name: alpha for name, alpha in how.alpha_by_group.items() if not name.endswith(f".{group}")}
    return replace(how, groups=tuple(each for each in how.groups if each != group), alpha_by_group=alphas)


def _conditions(layer: int, group: str, how: SmoothQuant) -> _Conditions:
    reader = READERS.get(group)
    alpha = None if reader is None else how.alpha_of(layer, reader)
    return layer, group, how.weight, how.activation, alpha
