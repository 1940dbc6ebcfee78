"""Which layers are out of line, by a book whose errors are made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made_ranges import make_ranges
from random_model import SMALL

from workbench.bench.kv_book import KVBook
from workbench.bench.kv_outliers import GROWN, compute_mended, mended_by, out_of_line
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import KVError, KVStudy
from workbench.recipe import Int8KVCache, SmoothQuant

HOW = Int8KVCache("per_head", 99.9)
SMOOTH = SmoothQuant(alpha=0.85)


class Book:
    """Two layers; the second one's second head errs by ``spoiled``, unless the alpha of its o is 0.

    Smoothing multiplies its largest value by ``grown``.
    """

    def __init__(self, spoiled: float, grown: float = 1.0) -> None:
        self.study = SimpleNamespace(ranges=make_ranges(SMALL))
        self.spoiled, self.grown = spoiled, grown
        self.known: dict[Any, KVError] = {}

    def error(self, layer: int, how: Int8KVCache, smoothing: SmoothQuant | None) -> KVError:
        mended = smoothing is not None and smoothing.alpha_of(1, "o") == 0
        heads = [0.01, self.spoiled if layer and not mended else 0.01]
        zero = torch.zeros(2)
        found = KVError(layer, max(heads) / 10, torch.tensor(heads, dtype=torch.float64), zero, zero, 0.0, 0.0)
        return self.known.setdefault((layer, how, smoothing), found)

    def known_error(self, layer: int, how: Int8KVCache, smoothing: SmoothQuant | None) -> KVError | None:
        return self.known.get((layer, how, smoothing))

    def smoothed_values(self, layer: int, smoothing: SmoothQuant | None) -> Any:
        grown = self.grown if layer else 1.0
        return None if smoothing is None else self.study.ranges.values[layer].double().numpy() * grown


def computed(book: Any, smoothing: SmoothQuant | None = SMOOTH) -> Any:
    for layer in (0, 1):
        book.error(layer, HOW, smoothing)
    return book


def test_nothing_is_said_before_all_layers_are_known() -> None:
    book: Any = Book(1.0)
    book.error(1, HOW, SMOOTH)
    assert out_of_line(book, HOW, SMOOTH) == []


@pytest.mark.parametrize(("spoiled", "count"), [(0.19, 0), (0.9, 1)])
def test_a_lost_head_puts_its_layer_out_of_line(spoiled: float, count: int) -> None:
    found = out_of_line(computed(Book(spoiled)), HOW, SMOOTH)
    assert len(found) == count
    for each in found:
        assert (each.layer, each.head, each.head_error) == (1, 1, spoiled)
        assert (each.error, each.median) == (spoiled / 10, pytest.approx((0.001 + spoiled / 10) / 2))
        assert not each.by_smoothing
        assert each.stored == each.calibrated > 0


def test_what_every_layer_errs_by_is_not_out_of_line() -> None:
    book: Any = Book(0.3)
    computed(book)
    for layer in (0, 1):  # every layer at 0.1: 0.3 is three times as much
        book.known[layer, HOW, SMOOTH] = KVError(layer, 0.1, torch.tensor([0.3, 0.3]), *[torch.zeros(2)] * 2, 0.0, 0.0)
    assert out_of_line(book, HOW, SMOOTH) == []


def test_smoothing_is_named_with_what_mends_it() -> None:
    book: Any = computed(Book(1.0, grown=2 * GROWN))
    (before,) = out_of_line(book, HOW, SMOOTH)
    assert before.by_smoothing
    assert before.stored == pytest.approx(2 * GROWN * before.calibrated)
    assert (before.group, before.mended) == ("layers.1.o", None)
    assert mended_by(before, SMOOTH).alpha_by_group == {"layers.1.o": 0.0}
    compute_mended(book, HOW, SMOOTH)
    (after,) = out_of_line(book, HOW, SMOOTH)
    assert after.mended == 0.001


def test_without_smoothing_nothing_else_is_computed() -> None:
    book: Any = computed(Book(1.0), None)
    compute_mended(book, HOW, None)
    (found,) = out_of_line(book, HOW, None)
    assert not found.by_smoothing
    assert len(book.known) == 2


def test_a_real_book_tells_what_smoothing_makes_of_the_values(
    random_kv_study: KVStudy, random_search: AlphaSearch
) -> None:
    book = KVBook(random_kv_study, random_search)
    assert book.smoothed_values(1, SMOOTH) is None  # nothing was asked with it
    book.error(1, HOW, SMOOTH)
    book.error(1, HOW, None)
    expected = book.ranges(1, SMOOTH).values[1].double().numpy()
    np.testing.assert_array_equal(book.smoothed_values(1, SMOOTH), expected)
    assert not np.array_equal(expected, random_kv_study.ranges.values[1].double().numpy())
    assert book.smoothed_values(1, None) is None
