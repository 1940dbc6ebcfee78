"""The book computes what the study computes, once, and forgets nothing that still holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.bench.kv_book import KVBook, kv_frame
from workbench.errors import Cancelled
from workbench.progress import ProgressEvent
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import DEFAULT_PERCENTILES, KVStudy
from workbench.recipe import Int8KVCache, SmoothQuant

HOW = Int8KVCache("per_head", 99.5)
SMOOTH = SmoothQuant(alpha=0.6)


class Counting:
    """A study that counts what it is asked."""

    def __init__(self, study: KVStudy) -> None:
        self.study, self.asked = study, 0

    def error(self, *args: Any) -> Any:
        self.asked += 1
        return self.study.error(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)


@pytest.fixture
def counting(random_kv_study: KVStudy) -> Counting:
    return Counting(random_kv_study)


@pytest.fixture
def book(counting: Counting, random_search: AlphaSearch) -> KVBook:
    return KVBook(counting, random_search)  # type: ignore[arg-type]


def test_an_error_is_that_of_the_study_and_is_remembered(
    book: KVBook, counting: Counting, random_kv_study: KVStudy
) -> None:
    assert book.known_error(0, HOW, None) is None
    found = book.error(0, HOW, None)
    assert found.relative_l2 == random_kv_study.error(0, HOW).relative_l2
    assert book.known_error(0, HOW, None) is found
    assert book.error(0, HOW, None) is found
    assert counting.asked == 1
    assert book.known_error(1, HOW, None) is None
    assert book.known_error(0, replace(HOW, granularity="per_tensor"), None) is None


def test_smoothing_divides_the_values(book: KVBook, random_kv_study: KVStudy, random_search: AlphaSearch) -> None:
    found = book.error(1, HOW, SMOOTH)
    divisor = random_search.scale(1, "o", SMOOTH)
    assert found.relative_l2 == random_kv_study.error(1, HOW, divisor).relative_l2
    assert not torch.equal(found.value_scale, book.error(1, HOW, None).value_scale)
    assert not torch.equal(book.ranges(1, SMOOTH).values[1], book.ranges(1, None).values[1])
    assert book.divides(1, SMOOTH)
    assert not book.divides(1, None)


def test_only_the_alpha_of_o_in_that_layer_matters(book: KVBook, counting: Counting) -> None:
    book.error(1, HOW, SMOOTH)
    others = replace(SMOOTH, alpha_by_group={"layers.1.down": 0.1, "layers.1.qkv": 0.1, "layers.0.o": 0.1})
    assert book.known_error(1, HOW, others) is not None
    assert book.known_error(1, HOW, replace(SMOOTH, alpha_by_group={"layers.1.o": 0.1})) is None
    assert book.known_error(1, HOW, replace(SMOOTH, groups=("qkv", "down"))) is None
    assert counting.asked == 1


def test_without_a_search_values_are_judged_as_they_are(random_kv_study: KVStudy) -> None:
    book = KVBook(random_kv_study)
    assert not book.divides(0, SMOOTH)
    assert book.error(0, HOW, SMOOTH).relative_l2 == random_kv_study.error(0, HOW).relative_l2


def test_what_o_makes_of_its_input_is_the_search_s_and_is_remembered(
    book: KVBook, random_search: AlphaSearch, random_kv_study: KVStudy
) -> None:
    assert book.known_output_error(1, SMOOTH) is None
    found = book.output_error(1, SMOOTH)
    assert found == random_search.error(1, "o", SMOOTH).error
    others = replace(SMOOTH, alpha_by_group={"layers.1.qkv": 0.1, "layers.0.o": 0.1})
    assert book.known_output_error(1, others) == found
    for another in (
        replace(SMOOTH, alpha_by_group={"layers.1.o": 0.1}),
        replace(SMOOTH, groups=("qkv",)),
        replace(SMOOTH, activation="per_token", weight="per_tensor"),
    ):
        assert book.known_output_error(1, another) is None
    assert book.known_output_error(0, SMOOTH) is None
    assert KVBook(random_kv_study).output_error(1, SMOOTH) is None


def test_a_curve_has_what_was_asked_before(book: KVBook, counting: Counting) -> None:
    assert book.known_curve(0, "per_head", None) is None
    book.error(0, Int8KVCache("per_head", 97.0), None)
    curve = book.curve(0, "per_head", None)
    assert curve.percentiles == (97.0, *DEFAULT_PERCENTILES)
    assert counting.asked == len(curve.percentiles)
    assert book.curve(0, "per_head", None).errors == curve.errors
    assert counting.asked == len(curve.percentiles)
    assert book.known_curve(0, "per_tensor", None) is None


def test_a_stopped_curve_keeps_what_it_had(book: KVBook) -> None:
    def report(event: ProgressEvent) -> None:
        if event.done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        book.curve(0, "per_tensor", None, report=report)
    known = book.known_curve(0, "per_tensor", None)
    assert known is not None
    assert known.percentiles == DEFAULT_PERCENTILES[:2]


def test_the_frame(book: KVBook, random_kv_study: KVStudy) -> None:
    ranges = random_kv_study.ranges
    empty = kv_frame(ranges, HOW, None)
    assert empty["layer"].tolist() == [0, 1]
    assert empty["key_absmax"].tolist() == [float(ranges.keys[layer].max()) for layer in (0, 1)]
    assert empty["error_per_head"].isna().all()
    error = book.error(1, HOW, SMOOTH)
    book.error(0, replace(HOW, granularity="per_tensor"), SMOOTH)
    frame = kv_frame(ranges, HOW, SMOOTH, book)
    np.testing.assert_array_equal(frame["error_per_head"], [np.nan, error.relative_l2])
    assert frame["error_per_tensor"].notna().tolist() == [True, False]
    smoothed = book.ranges(1, SMOOTH).values[1].max()
    assert frame["value_smoothed"].tolist() == [float(book.ranges(0, SMOOTH).values[0].max()), float(smoothed)]
    assert empty["value_smoothed"].isna().all()
    np.testing.assert_array_equal(frame["value_clipped"], [np.nan, error.value_clipped])
    assert error.key_clipped > 0
