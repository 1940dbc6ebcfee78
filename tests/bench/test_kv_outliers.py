"""Which layers are out of line, by a study whose errors are made by hand; why, and what mends them, by a real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_made_ranges import make_ranges
from random_model import SMALL
from torch import Tensor

from workbench.bench.kv_book import KVBook
from workbench.bench.kv_outliers import MOST_EXPLAINED, TRIED_ALPHAS, OutOfLine, Trial, compute_remedies, out_of_line
from workbench.bench.state import with_alphas
from workbench.errors import Cancelled
from workbench.progress import ProgressEvent
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import KVError, KVStudy
from workbench.recipe import Int8KVCache, SmoothQuant

HOW = Int8KVCache("per_head", 100.0)
PER_TENSOR = Int8KVCache("per_tensor", 100.0)
SMOOTH = SmoothQuant(alpha=0.85)


class Search:
    """A search whose scales are another's, edited."""

    def __init__(self, search: AlphaSearch, edit: Callable[[int, Tensor], Tensor]) -> None:
        self.search, self.edit = search, edit

    def scale(self, layer: int, group: str, how: SmoothQuant) -> Tensor | None:
        scale = self.search.scale(layer, group, how)
        return None if scale is None else self.edit(layer, scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.search, name)


def made(*layers: tuple[float, Sequence[float]]) -> KVBook:
    """Layers that err by so much, each head by so much."""

    def error(layer: int, _how: Int8KVCache, _divisor: Tensor | None = None) -> KVError:
        whole, heads = layers[layer]
        zeros = torch.zeros(2)
        return KVError(layer, whole, torch.tensor(heads, dtype=torch.float64), zeros, zeros, 0.0, 0.0)

    study: Any = SimpleNamespace(ranges=make_ranges(replace(SMALL, num_layers=len(layers))), error=error)
    return KVBook(study)


def found_in(book: KVBook, how: Int8KVCache = HOW, smoothing: SmoothQuant | None = None) -> list[OutOfLine]:
    """After the errors of all layers are known."""
    for layer in book.study.ranges.keys:
        book.error(layer, how, smoothing)
    return out_of_line(book, how, smoothing)


def explained(book: KVBook, how: Int8KVCache = HOW, smoothing: SmoothQuant = SMOOTH) -> OutOfLine:
    """The one layer that is out of line, with its cause and remedy."""
    (before,) = found_in(book, how, smoothing)
    assert (before.plain, before.tried, before.remedy) == (None, (), None)
    compute_remedies(book, how, smoothing)
    (after,) = out_of_line(book, how, smoothing)
    return after


# ---- which layers


def test_nothing_is_said_before_all_layers_are_known() -> None:
    book = made((0.01, [0.01, 0.01]), (0.5, [0.01, 1.0]))
    book.error(1, HOW, None)
    assert out_of_line(book, HOW, None) == []


@pytest.mark.parametrize(("spoiled", "count"), [(0.19, 0), (0.21, 1)])
def test_a_lost_head_puts_its_layer_out_of_line(spoiled: float, count: int) -> None:
    found = found_in(made((0.01, [0.01, 0.01]), (0.012, [0.01, 0.01]), (spoiled / 10, [0.01, spoiled])))
    assert len(found) == count
    for each in found:
        assert (each.layer, each.head, each.head_error, each.error) == (2, 1, spoiled, spoiled / 10)
        assert each.median == pytest.approx(0.011)  # of the others
        assert not each.divided
        assert not each.by_smoothing


def test_what_every_layer_errs_by_is_not_out_of_line() -> None:
    assert found_in(made((0.1, [0.3, 0.3]), (0.1, [0.3, 0.1]))) == []


@pytest.mark.parametrize("others", [1, 5])
def test_a_lost_layer_is_named_however_much_the_others_err(others: int) -> None:
    found = found_in(made(*[(0.12, [0.15, 0.1])] * others, (1.0, [1.0, 1.0])))
    assert [each.layer for each in found] == [others]


def test_layers_that_are_all_lost_are_all_named_the_worst_first() -> None:
    found = found_in(made((0.6, [0.6, 0.6]), (0.8, [0.9, 0.7]), (0.7, [0.7, 0.7])))
    assert [each.layer for each in found] == [1, 2, 0]


def test_what_is_not_a_number_is_out_of_line_and_hides_no_other() -> None:
    found = found_in(made((0.01, [0.01, 0.01]), (0.3, [0.01, 0.4]), (math.nan, [0.01, math.nan])))
    assert [(each.layer, each.head) for each in found] == [(2, 1), (1, 1)]
    assert math.isnan(found[0].head_error)
    assert (found[0].median, found[1].median) == (pytest.approx(0.155), 0.01)


@pytest.mark.parametrize(("error", "count"), [(0.4, 0), (0.6, 1)])
def test_one_layer_has_no_others_to_be_out_of_line_with(error: float, count: int) -> None:
    found = found_in(made((error, [error, 0.1])))
    assert len(found) == count
    assert all(math.isnan(each.median) for each in found)


# ---- why, and what mends it


def test_smoothing_that_spoils_a_layer_is_named_with_the_alpha_that_mends_it(
    random_kv_study: KVStudy, spoiling_search: AlphaSearch
) -> None:
    found = explained(KVBook(random_kv_study, spoiling_search))
    assert (found.layer, found.head, found.group) == (1, 0, "layers.1.o")
    assert found.head_error > 0.9
    assert found.by_smoothing
    assert found.plain is not None
    assert found.plain.error == random_kv_study.error(1, HOW).relative_l2
    assert tuple(trial.alpha for trial in found.tried) == TRIED_ALPHAS
    best = found.remedy
    assert best is not None
    assert best.alpha is not None
    assert best.error == min(trial.error for trial in found.tried) < found.error / 10
    mended = with_alphas(SMOOTH, {found.group: best.alpha})
    divisor = spoiling_search.scale(1, "o", mended)
    assert best.error == random_kv_study.error(1, HOW, divisor).relative_l2
    assert best.output_error == spoiling_search.error(1, "o", mended).error
    assert found.output_error == spoiling_search.error(1, "o", SMOOTH).error
    assert out_of_line(KVBook(random_kv_study, spoiling_search), HOW, mended) == []


def test_a_layer_that_no_alpha_mends_is_mended_without_smoothing(
    random_kv_study: KVStudy, random_search: AlphaSearch
) -> None:
    def edit(layer: int, scale: Tensor) -> Tensor:
        scale = scale.clone()
        scale[0] *= 1e-3 if layer else 1.0
        return scale

    search: Any = Search(random_search, edit)
    found = explained(KVBook(random_kv_study, search))
    assert found.by_smoothing
    assert min(trial.head_error for trial in found.tried) > 0.5
    assert found.remedy == found.plain
    assert found.remedy is not None
    assert (found.remedy.alpha, found.remedy.error) == (None, random_kv_study.error(1, HOW).relative_l2)
    assert found.remedy.output_error == random_search.error(1, "o", replace(SMOOTH, groups=("qkv",))).error


def louder_keys(study: KVStudy, factor: float) -> KVStudy:
    """The same study with the first channel of layer 1's first KV head so many times as large."""
    heads = torch.ones(study.config.num_kv_heads)
    heads[0] = factor
    ranges = replace(study.ranges, keys={**study.ranges.keys, 1: study.ranges.keys[1] * heads})
    changed = KVStudy(study.config, study.inputs.file.path, ranges)
    channel, inputs = study.config.num_heads * study.config.head_dim, changed.inputs

    def read(layer: int) -> Tensor:
        qkv = inputs(layer).clone()
        qkv[..., channel] *= factor if layer == 1 else 1.0
        return qkv

    changed.inputs = read  # type: ignore[assignment]  # nothing else of the file is asked for
    return changed


@pytest.mark.parametrize("shrink", [1.0, 1 / 50])
def test_an_outlier_in_the_keys_is_not_blamed_on_smoothing(
    random_kv_study: KVStudy, random_search: AlphaSearch, shrink: float
) -> None:
    search: Any = Search(random_search, lambda _layer, scale: scale * shrink)
    book = KVBook(louder_keys(random_kv_study, 100.0), search)
    found = explained(book, PER_TENSOR)
    assert found.layer == 1
    assert found.plain is not None
    assert found.plain.error == pytest.approx(found.error, rel=0.05)  # smoothing of o does nothing to it
    assert not found.by_smoothing
    assert (found.tried, found.remedy) == ((), None)
    assert book.known_error(1, PER_TENSOR, with_alphas(SMOOTH, {found.group: 0.0})) is None  # nothing more was tried


def test_values_that_are_all_scaled_alike_err_as_before(random_kv_study: KVStudy, random_search: AlphaSearch) -> None:
    alike: Any = Search(random_search, lambda _layer, scale: torch.full_like(scale, 1 / 50))
    book = KVBook(louder_keys(random_kv_study, 100.0), alike)
    found = explained(book, PER_TENSOR)
    assert found.plain is not None
    assert found.plain.error == pytest.approx(found.error, rel=1e-6)
    values = book.smoothed_values(1, SMOOTH)
    assert values is not None
    assert values.max() == pytest.approx(50 * float(book.study.ranges.values[1].max()))  # and yet it is not the cause
    assert not found.by_smoothing


def test_without_smoothing_or_without_rows_nothing_more_is_computed(
    random_kv_study: KVStudy, spoiling_search: AlphaSearch
) -> None:
    study = louder_keys(random_kv_study, 100.0)
    for search, smoothing in ((spoiling_search, None), (None, SMOOTH)):
        book = KVBook(study, search)
        (before,) = found_in(book, PER_TENSOR, smoothing)
        asked: list[ProgressEvent] = []
        compute_remedies(book, PER_TENSOR, smoothing, asked.append)
        assert asked == []
        assert out_of_line(book, PER_TENSOR, smoothing) == [before]
        assert (before.divided, before.by_smoothing, before.remedy) == (False, False, None)


@pytest.fixture
def many() -> KVBook:
    """Twice as many lost layers as are explained, and smoothing is the cause."""

    def error(layer: int, _how: Int8KVCache, divisor: Tensor | None) -> KVError:
        lost = 1.0 - layer / 100 if divisor is not None else 0.01
        zeros = torch.zeros(2)
        return KVError(layer, lost, torch.tensor([lost, lost], dtype=torch.float64), zeros, zeros, 0.0, 0.0)

    ranges = make_ranges(replace(SMALL, num_layers=2 * MOST_EXPLAINED))
    search: Any = SimpleNamespace(scale=lambda *_: torch.ones(1), error=lambda *_: SimpleNamespace(error=0.02))
    book = KVBook(SimpleNamespace(ranges=ranges, error=error), search)  # type: ignore[arg-type]
    assert len(found_in(book, HOW, SMOOTH)) == 2 * MOST_EXPLAINED
    return book


def test_only_the_worst_of_many_are_explained(many: KVBook) -> None:
    events: list[ProgressEvent] = []
    compute_remedies(many, HOW, SMOOTH, events.append)
    found = out_of_line(many, HOW, SMOOTH)
    assert [each.remedy is not None for each in found] == [True] * MOST_EXPLAINED + [False] * MOST_EXPLAINED
    assert sorted({event.done for event in events}) == list(range(MOST_EXPLAINED))
    assert {(event.task, event.total, event.unit) for event in events} == {("remedies", MOST_EXPLAINED, "layers")}


def test_explaining_can_be_stopped_within_a_layer(many: KVBook) -> None:
    events: list[ProgressEvent] = []

    def stop(event: ProgressEvent) -> None:
        events.append(event)
        if len(events) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        compute_remedies(many, HOW, SMOOTH, stop)
    found = out_of_line(many, HOW, SMOOTH)
    assert found[0].by_smoothing  # what was computed is kept
    assert found[0].remedy is None
    assert found[1].plain is None


def test_the_remedy_is_the_best_of_those_that_mend() -> None:
    """The alpha of the layer's least error may leave one head lost."""
    plain = Trial(None, 0.05, 0.2)
    least, mends, worse = Trial(0.0, 0.08, 0.6), Trial(0.25, 0.09, 0.3), Trial(0.5, 0.1, 0.3)
    found = OutOfLine(0, 0.3, 1, 1.0, 0.02, divided=True, plain=plain, tried=(least, worse, mends))
    assert found.remedy == mends
    assert replace(found, tried=(least,)).remedy == plain
    assert replace(found, tried=(Trial(0.0, math.nan, 0.1), mends)).remedy == mends
