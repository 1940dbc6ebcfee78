"""Layers that an INT8 KV cache spoils, whether smoothing is the cause, and what mends them.

Cause and remedy are found by comparing errors: the layer with the same scales and another smoothing of its o. Reads a
:class:`KVBook`; changes no recipe, and knows no widgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.bench.alpha_book import without
from workbench.bench.kv_book import KVBook
from workbench.bench.state import group_name, with_alphas
from workbench.evaluation.kv_table import kv_layers
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.kv_error import KVError
from workbench.recipe import Int8KVCache, SmoothQuant

# A layer is out of line where the queries of one KV head err by more than this share, and by so many times the median
# error of the other layers. One head among many hardly moves its layer's error, though nothing is left of what it
# stored. A head that errs by more than LOST is named whatever the others do: they may be as bad.
LEAST_ERROR, TIMES_MEDIAN, LOST = 0.2, 10.0, 0.5
# What leaves at most this share of the worst head's error is its remedy; where that is not to smooth, smoothing is the
# cause.
MUCH_LESS = 0.5
# Alphas that are tried as a remedy. The middle is often better than either end, for the cache and for o itself.
TRIED_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Remedies are computed for so many layers, the worst first.
MOST_EXPLAINED = 3


@dataclass(frozen=True)
class Trial:
    """An out-of-line layer with another smoothing of its o.

    Attributes:
        alpha: of its o; None where o is not smoothed.
        error: relative L2 of attention's output.
        head_error: the same of the worst KV head's queries.
        output_error: relative L2 of what o makes of its input when it is quantized with this alpha, as
            :class:`AlphaSearch` measures it; None where that is not known.
    """

    alpha: float | None
    error: float
    head_error: float
    output_error: float | None = None


@dataclass(frozen=True)
class OutOfLine:
    """One such layer.

    Attributes:
        layer: which one.
        error: relative L2 of attention's output; may be NaN.
        head: the KV head whose queries err most.
        head_error: how much they do; may be NaN.
        median: of the errors of the other layers; NaN where none of them has one.
        divided: whether smoothing of o divides the layer's values.
        output_error: of its o as the recipe has it, as in :class:`Trial`.
        plain: the layer without smoothing of o; None where nothing divides its values, or that is not known yet.
        tried: the layer at :data:`TRIED_ALPHAS`; empty where smoothing is not the cause, or not all are known yet.
    """

    layer: int
    error: float
    head: int
    head_error: float
    median: float
    divided: bool = False
    output_error: float | None = None
    plain: Trial | None = None
    tried: tuple[Trial, ...] = ()

    @property
    def by_smoothing(self) -> bool:
        """Whether smoothing is the cause, as far as is known."""
        return self.plain is not None and self.mended_by(self.plain)

    @property
    def remedy(self) -> Trial | None:
        """The alpha tried that mends it best; not to smooth o where none does. None where neither does, or is known."""
        if not self.tried:
            return None
        mending = [trial for trial in self.tried if self.mended_by(trial)]
        return min(mending, key=lambda trial: trial.error) if mending else self.plain

    @property
    def group(self) -> str:
        """The smoothing group that divides the layer's values."""
        return group_name(self.layer, "o")

    def mended_by(self, trial: Trial) -> bool:
        """Whether a trial leaves little of the worst head's error, and no more of the layer's."""
        if not (math.isfinite(trial.error) and math.isfinite(trial.head_error)):
            return False
        # So written, a NaN of the layer as it is counts as more than any number.
        return not (trial.head_error > MUCH_LESS * self.head_error or trial.error > self.error)


def out_of_line(book: KVBook, how: Int8KVCache, smoothing: SmoothQuant | None) -> list[OutOfLine]:
    """The layers that are out of line, the worst first, by what is known; none before the errors of all layers are."""
    layers = kv_layers(book.study.ranges)
    known = [book.known_error(layer, how, smoothing) for layer in layers]
    errors = [error for error in known if error is not None]
    if len(errors) < len(layers):
        return []
    found = [
        _explained(book, one, how, smoothing)
        for place, error in enumerate(errors)
        if (one := _if_out_of_line(error, errors[:place] + errors[place + 1 :])) is not None
    ]
    return sorted(found, key=lambda one: (not math.isnan(one.head_error), -one.head_error, -one.error))


def compute_remedies(book: KVBook, how: Int8KVCache, smoothing: SmoothQuant | None, report: Reporter = silent) -> None:
    """Compute the cause and the remedy of the worst layers that are out of line, so that :func:`out_of_line` has them.

    Raises:
        RecipeError, CheckpointError: as :meth:`KVBook.error`.
        Cancelled: the reporter stopped it; what was computed is kept.
    """
    if smoothing is None:
        return
    worst = [one for one in out_of_line(book, how, smoothing)[:MOST_EXPLAINED] if one.divided]
    for done, one in enumerate(worst):
        event = ProgressEvent("remedies", done, len(worst), "layers")
        report(event)
        book.error(one.layer, how, without(smoothing, "o"))
        if not _explained(book, one, how, smoothing).by_smoothing:
            continue
        for other in _tried(one, smoothing):
            report(event)
            book.error(one.layer, how, other)
        report(event)
        remedy = _explained(book, one, how, smoothing).remedy
        for alpha in (smoothing.alpha_of(one.layer, "o"), remedy.alpha if remedy else None):
            book.output_error(one.layer, _with_alpha(one, smoothing, alpha))


def _if_out_of_line(error: KVError, others: Sequence[KVError]) -> OutOfLine | None:
    head = int(error.by_head.argmax())  # a NaN where there is one
    sizes = [other.relative_l2 for other in others if not math.isnan(other.relative_l2)]
    median = float(np.median(sizes)) if sizes else math.nan
    limit = min(max(LEAST_ERROR, TIMES_MEDIAN * median), LOST) if sizes else LOST
    found = OutOfLine(error.layer, error.relative_l2, head, float(error.by_head[head]), median)
    return None if found.head_error <= limit else found


def _explained(book: KVBook, one: OutOfLine, how: Int8KVCache, smoothing: SmoothQuant | None) -> OutOfLine:
    """With what the book knows of cause and remedy."""
    if smoothing is None or not book.divides(one.layer, smoothing):
        return one
    plain = _trial(book, one.layer, how, without(smoothing, "o"))
    one = replace(one, divided=True, output_error=book.known_output_error(one.layer, smoothing), plain=plain)
    if not one.by_smoothing:
        return one
    tried = [_trial(book, one.layer, how, other) for other in _tried(one, smoothing)]
    known = tuple(trial for trial in tried if trial is not None)
    return replace(one, tried=known) if len(known) == len(tried) else one


def _trial(book: KVBook, layer: int, how: Int8KVCache, smoothing: SmoothQuant) -> Trial | None:
    error = book.known_error(layer, how, smoothing)
    if error is None:
        return None
    output_error = book.known_output_error(layer, smoothing)
    return Trial(smoothing.alpha_of(layer, "o"), error.relative_l2, float(error.by_head.max()), output_error)


def _tried(one: OutOfLine, smoothing: SmoothQuant) -> Iterator[SmoothQuant]:
    return (_with_alpha(one, smoothing, alpha) for alpha in TRIED_ALPHAS)


def _with_alpha(one: OutOfLine, smoothing: SmoothQuant, alpha: float | None) -> SmoothQuant:
    """The same smoothing, but for the layer's o; None takes o out of what is smoothed."""
    return without(smoothing, "o") if alpha is None else with_alphas(smoothing, {one.group: alpha})
