"""Ranges: percentiles against sorting, merging, files, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench.errors import CheckpointError, RecipeError
from workbench.quantization.ranges import (
    BINS,
    LOWEST_EXPONENT,
    PERCENTILES,
    STEPS_PER_OCTAVE,
    ActivationRanges,
    RangesSource,
    bin_edges,
    count_bins,
    magnitude_codes,
    magnitudes,
    percentiles,
)

SOURCE = RangesSource("text", "0" * 64, windows=2, length=8, tokens=16, model_fingerprint="f" * 64, dtype="float32")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BIN_WIDTH = 1 / STEPS_PER_OCTAVE


def make_ranges(seed: int = 0, source: RangesSource = SOURCE) -> ActivationRanges:
    """Two linear layers and one layer's cache of random values."""
    torch.manual_seed(seed)
    taps = {name: torch.randn(50, 6) for name in ("a.input", "a.output", "lm_head.input", "lm_head.output")}
    heads = {part: torch.randn(2, 400) for part in ("key", "value")}

    def maxima(side: str) -> dict[str, torch.Tensor]:
        return {name.removesuffix(side): x.abs().amax(0) for name, x in taps.items() if name.endswith(side)}

    return ActivationRanges(
        (source,),
        inputs=maxima(".input"),
        outputs=maxima(".output"),
        keys={0: heads["key"].abs().amax(1)},
        values={0: heads["value"].abs().amax(1)},
        histograms={name: count_bins(magnitude_codes(x), torch.float32) for name, x in taps.items()},
        kv_histograms={
            f"layers.0.{part}": torch.stack([count_bins(magnitude_codes(head), torch.float32) for head in x])
            for part, x in heads.items()
        },
    )


def assert_same(left: ActivationRanges, right: ActivationRanges) -> None:
    assert left.source == right.source
    left_tensors, right_tensors = left.tensors(), right.tensors()
    assert left_tensors.keys() == right_tensors.keys()
    assert all(torch.equal(tensor, right_tensors[name]) for name, tensor in left_tensors.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_is_counted_between_the_edges_of_its_bin(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(500) * 10.0**power for power in range(-6, 4)]).to(dtype)
    values = values[values != 0].reshape(-1, 1)
    edges = bin_edges()
    for value in values[:: len(values) // 200]:
        counts = count_bins(magnitude_codes(value), dtype)
        assert counts.sum() == 1
        (place,) = counts.nonzero()[0].tolist()
        assert edges[place] <= value.double().abs() < edges[place + 1]


def test_a_bin_is_at_most_one_step_wide_and_edges_only_rise() -> None:
    edges = bin_edges()
    assert len(edges) == BINS + 1
    assert edges[-1] == 2.0**24
    ratio = edges[2:] / edges[1:-1]
    assert ratio.min() > 1
    assert ratio.max() <= 1 + BIN_WIDTH


def test_what_is_beyond_the_bins_counts_in_the_outermost() -> None:
    values = torch.tensor([0.0, 2.0 ** (LOWEST_EXPONENT - 3), 2.0**30, -(2.0**40)])
    counts = count_bins(magnitude_codes(values), torch.float32)
    assert counts[0] == counts[-1] == 2
    assert counts.sum() == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_sort_as_magnitudes_and_give_them_back(dtype: torch.dtype) -> None:
    values = torch.tensor([-3.5, 0.25, -0.0, 1e-3, 65000.0]).to(dtype)
    codes = magnitude_codes(values)
    assert torch.equal(magnitudes(codes, dtype), values.abs().float())
    assert torch.equal(codes.argsort(), values.abs().float().argsort())
    assert magnitudes(magnitude_codes(torch.tensor([1.0, float("nan")]).to(dtype)).amax(0), dtype).isnan()


@settings(max_examples=60, deadline=None)
@given(
    percent=st.sampled_from([50.0, *PERCENTILES]),
    seed=st.integers(0, 1000),
    spread=st.floats(0.0, 3.0),
    scale=st.floats(1e-3, 1e3),
)
def test_percentiles_are_within_a_bin_of_sorting(percent: float, seed: int, spread: float, scale: float) -> None:
    torch.manual_seed(seed)
    values = torch.randn(4000) * torch.exp(spread * torch.randn(4000)) * scale
    # The last bin holds all that is larger.
    assume(bool(values.abs().max() < bin_edges()[-1]))
    found = float(percentiles(count_bins(magnitude_codes(values), torch.float32), percent))
    ordered = values.abs().sort().values
    exact = float(ordered[round(percent * 40) - 1])
    assert exact / (1 + BIN_WIDTH) <= found <= exact * (1 + BIN_WIDTH)


def test_no_percentile_exceeds_the_maximum_and_zeros_stay_small() -> None:
    ranges = make_ranges()
    for name in ranges.histograms:
        values = [ranges.percentile(name, percent) for percent in (50.0, *PERCENTILES, 100.0)]
        assert values == sorted(values)
    zeros = count_bins(magnitude_codes(torch.zeros(100)), torch.float32)
    assert 0 <= percentiles(zeros, 99.0) <= 2.0**LOWEST_EXPONENT * (1 + BIN_WIDTH)
    assert percentiles(torch.zeros(BINS, dtype=torch.int64), 99.0) == 0


def test_kv_maxima_are_exact_and_clipped_ones_per_head() -> None:
    ranges = make_ranges()
    assert torch.equal(ranges.kv_absmax(0, "key"), ranges.keys[0])
    clipped = ranges.kv_absmax(0, "value", 90.0)
    for head in range(2):
        alone = percentiles(ranges.kv_histograms["layers.0.value"][head], 90.0)
        assert clipped[head] == alone < ranges.values[0][head]
    assert ranges.percentile("layers.0.key", 100.0) == ranges.keys[0].max()
    assert ranges.percentile("layers.0.key", 99.0) < ranges.keys[0].max()


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    ranges = make_ranges()
    ranges.save(tmp_path / "ranges.safetensors")
    assert_same(ActivationRanges.load(tmp_path / "ranges.safetensors"), ranges)
    assert_same(ActivationRanges.load(tmp_path), ranges)
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.safetensors"]


def test_merging_takes_larger_maxima_and_adds_counts() -> None:
    left, right = make_ranges(0), make_ranges(1, dataclasses.replace(SOURCE, dataset="other"))
    both = left | right
    assert [source.dataset for source in both.source] == ["text", "other"]
    for place in ("inputs", "outputs", "keys", "values"):
        for name, maxima in getattr(both, place).items():
            assert torch.equal(maxima, torch.maximum(getattr(left, place)[name], getattr(right, place)[name]))
    for name, counts in both.kv_histograms.items():
        assert torch.equal(counts, left.kv_histograms[name] + right.kv_histograms[name])
    assert both.histograms["a.input"].sum() == 600


def test_a_histogram_that_one_lacks_is_gone_after_merging() -> None:
    without = dataclasses.replace(make_ranges(1), histograms={})
    assert not (make_ranges() | without).histograms


def test_ranges_of_another_model_are_neither_used_nor_merged() -> None:
    other = make_ranges(1, dataclasses.replace(SOURCE, model_fingerprint="e" * 64))
    make_ranges().require_model("f" * 64)
    with pytest.raises(
        CheckpointError, match="ranges are of model ffffffffffff; allowed: ranges of model eeeeeeeeeeee"
    ):
        make_ranges().require_model("e" * 64)
    with pytest.raises(CheckpointError, match="ranges are of model"):
        make_ranges() | other


@pytest.mark.parametrize("place", ["inputs", "outputs", "keys", "values"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_maxima_that_are_no_numbers_are_refused(place: str, bad: float) -> None:
    name = 0 if place in ("keys", "values") else "a"
    with pytest.raises(CheckpointError, match=f"ranges of {place} {name} hold NaN or infinite values"):
        dataclasses.replace(make_ranges(), **{place: {name: torch.tensor([1.0, bad])}})


def test_what_is_not_there_is_named() -> None:
    ranges = make_ranges()
    with pytest.raises(CheckpointError, match="no linear layer lm_haed; did you mean 'lm_head'"):
        ranges.input_absmax("lm_haed")
    with pytest.raises(CheckpointError, match="no linear layer b"):
        ranges.output_absmax("b")
    with pytest.raises(CheckpointError, match="no layer 7"):
        ranges.kv_absmax(7, "key")
    with pytest.raises(CheckpointError, match="no part 'query'; allowed: key, value"):
        ranges.kv_absmax(0, "query")
    without = dataclasses.replace(ranges, histograms={}, kv_histograms={})
    with pytest.raises(CheckpointError, match=r"no histogram a\.input"):
        without.percentile("a.input", 99.0)
    with pytest.raises(CheckpointError, match=r"no histogram layers\.0\.key"):
        without.kv_absmax(0, "key", 99.0)
    assert without.kv_absmax(0, "key").shape == (2,)


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.5, float("nan")])
def test_percentiles_out_of_range_are_refused(percent: float) -> None:
    with pytest.raises(RecipeError, match=r"percentile .*; allowed: more than 0, to 100"):
        make_ranges().percentile("a.input", percent)
    with pytest.raises(RecipeError, match="percentile"):
        make_ranges().kv_absmax(0, "key", percent)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ranges\.safetensors is missing; make it with workbench calibrate"):
        ActivationRanges.load(tmp_path)
    from safetensors.torch import save_file

    save_file({"inputs/a": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="is no file of activation ranges of version 1"):
        ActivationRanges.load(tmp_path / "weights.safetensors")
