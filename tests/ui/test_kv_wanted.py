"""What the panel asks for, in which order, and that it can be stopped."""

from __future__ import annotations

import pytest

from workbench.bench.kv_book import KVBook
from workbench.bench.kv_outliers import out_of_line
from workbench.errors import Cancelled
from workbench.progress import silent
from workbench.quantization.kv_error import DEFAULT_PERCENTILES
from workbench.recipe import Int8KVCache, SmoothQuant
from workbench.ui.kv_wanted import Wanted

HOW = Int8KVCache("per_tensor", 99.7)


@pytest.fixture
def wanted(random_kv_study):
    return Wanted(KVBook(random_kv_study), HOW, None, 1)


def test_the_picture_needs_one_error_only(wanted):
    picture = wanted.picture()
    assert list(picture.now) == ["per_tensor"]
    assert picture.chosen.relative_l2 == wanted.book.known_error(1, HOW, None).relative_l2
    assert picture.curves["per_tensor"].percentiles == (99.7,)
    assert wanted.book.known_error(0, HOW, None) is None


def test_the_rest_is_the_curves_and_the_other_layers(wanted):
    picture = wanted.picture()
    wanted.compute_rest(silent)
    whole = wanted.with_known(picture)
    assert set(whole.now) == set(whole.curves) == {"per_head", "per_tensor"}
    for curve in whole.curves.values():
        assert set(curve.percentiles) == {*DEFAULT_PERCENTILES, 99.7}
    assert wanted.book.known_error(0, Int8KVCache("per_head", 99.7), None) is not None


def test_what_was_computed_before_a_stop_is_kept(wanted):
    def report(event):
        if event.task == "layers":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        wanted.compute_rest(report)
    assert set(wanted.picture().curves) == {"per_head", "per_tensor"}
    assert wanted.book.known_error(0, HOW, None) is None


def test_remedies_come_last_and_can_be_stopped(random_kv_study, spoiling_search):
    how, smoothing, tasks = Int8KVCache("per_head"), SmoothQuant(), []
    wanted = Wanted(KVBook(random_kv_study, spoiling_search), how, smoothing, 0)

    def report(event):
        tasks.append(event.task)
        if event.task == "remedies":
            raise Cancelled("something else is shown by now")

    with pytest.raises(Cancelled):
        wanted.compute_rest(report)
    assert tasks.index("remedies") == len(tasks) - 1
    (found,) = out_of_line(wanted.book, how, smoothing)
    assert found.plain is None
    wanted.compute_rest(silent)
    (found,) = out_of_line(wanted.book, how, smoothing)
    assert found.remedy is not None
