"""The book computes what the search computes, once, and forgets nothing that still holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workbench.bench.alpha_book import AlphaBook, groups_frame, without
from workbench.errors import Cancelled
from workbench.progress import ProgressEvent
from workbench.quantization.alpha_search import AlphaCurve, AlphaSearch
from workbench.recipe import SmoothQuant

HOW = SmoothQuant(alpha=0.6)


class Counting:
    """A search that counts what it is asked."""

    def __init__(self, search: AlphaSearch) -> None:
        self.search, self.config = search, search.config
        self.errors = self.curves = 0

    def error(self, *args: Any) -> Any:
        self.errors += 1
        return self.search.error(*args)

    def curve(self, *args: Any, **options: Any) -> Any:
        self.curves += 1
        return self.search.curve(*args, **options)


@pytest.fixture
def counting(random_search: AlphaSearch) -> Counting:
    return Counting(random_search)


@pytest.fixture
def book(counting: Counting) -> AlphaBook:
    return AlphaBook(counting)  # type: ignore[arg-type]


def own(group: str, alpha: float) -> SmoothQuant:
    return replace(HOW, alpha_by_group={group: alpha})


def test_nothing_is_known_at_first(book: AlphaBook) -> None:
    assert book.known_error(0, "down", HOW) is None
    assert book.known_best(0, "down", HOW) is None
    assert book.known_curve(0, "down", HOW) is None


def test_an_error_is_that_of_the_search_and_is_remembered(book: AlphaBook, random_search: AlphaSearch) -> None:
    found = book.error(0, "down", HOW)
    assert found.error == random_search.error(0, "down", HOW).error
    assert book.known_error(0, "down", HOW) == found.error
    assert book.known_error(1, "down", HOW) is None
    assert book.known_best(0, "down", HOW) == (0.6, found.error)


@pytest.mark.parametrize(
    ("group", "how", "holds"),
    [
        ("qkv", own("layers.0.o", 0.3), False),  # o's scales divide v's rows
        ("qkv", own("layers.1.o", 0.3), True),
        ("qkv", own("layers.0.down", 0.3), True),
        ("gate_up", own("layers.0.down", 0.3), False),  # down's scales divide up's rows
        ("gate_up", own("layers.0.o", 0.3), True),
        ("down", own("layers.0.gate_up", 0.3), True),
        ("o", own("layers.0.qkv", 0.3), True),
        ("down", own("layers.0.down", 0.3), False),
        ("down", replace(HOW, alpha=0.3), False),
        ("down", replace(HOW, activation="per_tensor"), False),
        ("down", replace(HOW, weight="per_tensor"), False),
        ("down", replace(HOW, groups=("qkv", "o", "gate_up")), False),
        ("qkv", replace(HOW, groups=("qkv", "gate_up", "down")), False),
    ],
)
def test_an_error_holds_as_long_as_what_it_depends_on(
    book: AlphaBook, random_search: AlphaSearch, group: str, how: SmoothQuant, holds: bool
) -> None:
    before = book.error(0, group, HOW).error
    assert (book.known_error(0, group, how) is not None) == holds
    if holds:
        assert random_search.error(0, group, how).error == before


def test_a_curve_is_computed_once_whatever_the_groups_own_alpha(book: AlphaBook, counting: Counting) -> None:
    curve = book.curve(0, "down", HOW)
    assert book.curve(0, "down", own("layers.0.down", 0.1)) is curve
    assert book.known_curve(0, "down", replace(HOW, alpha=0.2)) is curve
    assert counting.curves == 1
    book.curve(0, "qkv", HOW)
    book.curve(0, "qkv", own("layers.0.o", 0.1))
    assert counting.curves == 3


def test_a_curve_fills_in_its_errors(book: AlphaBook) -> None:
    curve = book.curve(0, "down", HOW)
    assert book.known_error(0, "down", HOW) == dict(zip(curve.alphas, curve.errors, strict=True))[0.6]
    assert book.known_best(0, "down", HOW) == curve.best


def test_a_curve_that_was_stopped_is_not_taken_for_a_whole_one(book: AlphaBook) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        book.curve(0, "down", HOW, stop)
    assert book.known_curve(0, "down", HOW) is None
    assert len(book.curve(0, "down", HOW).alphas) == 21


def test_what_was_computed_elsewhere_is_taken_over(book: AlphaBook) -> None:
    book.note(AlphaCurve(1, "o", (0.6, 0.7), (0.03, 0.02)), HOW)
    assert book.known_error(1, "o", HOW) == 0.03
    assert book.known_best(1, "o", HOW) == (0.7, 0.02)
    assert book.known_curve(1, "o", HOW) is None


def test_the_best_is_a_smoothed_one(book: AlphaBook) -> None:
    book.unsmoothed(0, "down", HOW)
    assert book.known_best(0, "down", HOW) is None
    assert book.known_error(0, "down", without(HOW, "down")) is not None


def test_the_unsmoothed_group_is_kept_while_it_holds(book: AlphaBook, counting: Counting) -> None:
    plain = book.unsmoothed(0, "down", HOW)
    assert plain.alpha is None
    assert book.unsmoothed(0, "down", own("layers.0.down", 0.9)) is plain
    assert counting.errors == 1
    assert book.unsmoothed(0, "down", replace(HOW, activation="per_tensor")).error != plain.error


def test_without_a_group_the_others_stay() -> None:
    how = replace(HOW, alpha_by_group={"layers.0.o": 0.1, "layers.0.down": 0.2})
    assert without(how, "down") == SmoothQuant(
        alpha=0.6, groups=("qkv", "o", "gate_up"), alpha_by_group={"layers.0.o": 0.1}
    )


def test_the_frame_has_a_row_per_group(book: AlphaBook) -> None:
    how = SmoothQuant(alpha=0.6, groups=("o", "down"), alpha_by_group={"layers.1.down": 0.2})
    error = book.error(1, "down", how).error
    frame = groups_frame(how, {"layers.0.o"}, 2, book).set_index("group")
    assert list(frame.index[:4]) == ["layers.0.qkv", "layers.0.o", "layers.0.gate_up", "layers.0.down"]
    assert list(frame["layer"]) == [0] * 4 + [1] * 4
    assert list(frame.index[frame["locked"]]) == ["layers.0.o"]
    assert list(frame.index[frame["own"]]) == ["layers.1.down"]
    assert list(frame["alpha"].fillna(-1)) == [-1, 0.6, -1, 0.6, -1, 0.6, -1, 0.2]
    assert frame.loc["layers.1.down", ["error", "best_tried", "best_tried_error"]].tolist() == [error, 0.2, error]
    assert frame["error"].notna().sum() == 1


def test_the_frame_needs_no_book_and_no_model() -> None:
    frame = groups_frame(SmoothQuant(), (), 1)
    assert np.isnan(frame["error"]).all()
    assert len(groups_frame(SmoothQuant(), (), 0)) == 0


def test_a_kept_group_has_no_error_and_no_best_alpha(book: AlphaBook) -> None:
    book.error(0, "down", HOW)
    book.error(0, "o", HOW)
    plain = book.unsmoothed(0, "o", HOW).error
    frame = groups_frame(HOW, (), 2, book, {"layers.0.down"}).set_index("group")
    assert list(frame.index[frame["kept"]]) == ["layers.0.down"]
    assert frame.loc["layers.0.down", ["error", "plain_error"]].tolist() == [0.0, 0.0]
    assert frame.loc["layers.0.down", ["best_tried", "best_tried_error"]].isna().all()
    assert frame.loc["layers.0.o", "plain_error"] == plain
    assert frame.loc["layers.0.o", "best_tried"] == 0.6
