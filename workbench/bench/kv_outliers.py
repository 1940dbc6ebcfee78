"""Layers whose error with an INT8 KV cache is far out of line with the others', and what smoothing has to do with it.

Reads a :class:`KVBook`; changes no recipe, and knows no widgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.bench.kv_book import KVBook
from workbench.bench.state import group_name, with_alphas
from workbench.evaluation.kv_table import kv_layers
from workbench.quantization.kv_error import KVError
from workbench.recipe import Int8KVCache, SmoothQuant

# A layer is out of line where the queries of one KV head err by more than this share, and by so many times the median
# error of all layers. One head among many hardly moves its layer's error, though nothing is left of what it stored.
LEAST_ERROR, TIMES_MEDIAN = 0.2, 10.0
# Smoothing is the cause where it makes the largest value so many times as large.
GROWN = 3.0


@dataclass(frozen=True)
class OutOfLine:
    """One such layer.

    Attributes:
        layer: which one.
        error: relative L2 of attention's output.
        head: the KV head whose queries err most.
        head_error: how much they do.
        median: of the errors of all layers.
        calibrated: the layer's largest value as calibrated.
        stored: the largest as smoothing of o leaves it; the same where that does nothing.
        mended: the layer's error with the alpha of its o at 0; None where that is not known, or not the cause.
    """

    layer: int
    error: float
    head: int
    head_error: float
    median: float
    calibrated: float
    stored: float
    mended: float | None = None

    @property
    def by_smoothing(self) -> bool:
        """Whether smoothing is the cause."""
        return self.stored >= GROWN * self.calibrated > 0

    @property
    def group(self) -> str:
        """The smoothing group that divides the layer's values."""
        return group_name(self.layer, "o")


def out_of_line(book: KVBook, how: Int8KVCache, smoothing: SmoothQuant | None) -> list[OutOfLine]:
    """The layers that are out of line, by what is known; none before the errors of all layers are."""
    layers = kv_layers(book.study.ranges)
    known = [book.known_error(layer, how, smoothing) for layer in layers]
    errors = [error for error in known if error is not None]
    if len(errors) < len(layers) or not errors:
        return []
    median = float(np.median([error.relative_l2 for error in errors]))
    return [
        _described(book, error, how, smoothing, median)
        for error in errors
        if float(error.by_head.max()) > max(LEAST_ERROR, TIMES_MEDIAN * median)
    ]


def _described(
    book: KVBook, error: KVError, how: Int8KVCache, smoothing: SmoothQuant | None, median: float
) -> OutOfLine:
    layer, head = error.layer, int(error.by_head.argmax())
    calibrated = float(book.study.ranges.values[layer].max())
    smoothed = book.smoothed_values(layer, smoothing)
    stored = calibrated if smoothed is None else float(smoothed.max())
    found = OutOfLine(layer, error.relative_l2, head, float(error.by_head[head]), median, calibrated, stored)
    if not found.by_smoothing or smoothing is None:
        return found
    mended = book.known_error(layer, how, mended_by(found, smoothing))
    return OutOfLine(**(vars(found) | {"mended": None if mended is None else mended.relative_l2}))


def mended_by(found: OutOfLine, smoothing: SmoothQuant) -> SmoothQuant:
    """The same smoothing, but that it leaves the layer's values nearly as they are."""
    return with_alphas(smoothing, {found.group: 0.0})


def compute_mended(book: KVBook, how: Int8KVCache, smoothing: SmoothQuant | None) -> None:
    """Compute what the layers that smoothing put out of line would err by without it.

    Raises:
        RecipeError, CheckpointError: as :meth:`KVBook.error`.
    """
    for found in out_of_line(book, how, smoothing):
        if found.by_smoothing and smoothing is not None:
            book.error(found.layer, how, mended_by(found, smoothing))
