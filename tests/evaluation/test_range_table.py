from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hand_made_ranges import TOKENS, make_ranges
from random_model import SMALL

from workbench.errors import CheckpointError
from workbench.evaluation.range_table import (
    LAYER_SITES,
    channel_maxima,
    channel_name,
    counted_values,
    hottest_place,
    linear_of,
    place_of,
    place_percentiles,
    range_table,
    ratio_table,
    shown_histogram,
    top_channels,
)
from workbench.model.taps import LAYER_SITES as TAPS
from workbench.model.taps import MODEL_TAPS
from workbench.quantization.ranges import BINS, PERCENTILES, count_bins, magnitude_codes

HOT = "layers.1.mlp.down.input"


@pytest.fixture(scope="module")
def ranges():
    return make_ranges(SMALL, spoil={HOT: 50.0, "layers.0.key": 8.0})


@pytest.fixture(scope="module")
def table(ranges):
    return range_table(ranges)


def test_a_row_per_layer_and_site_and_the_lm_head(table):
    assert len(table) == 2 * len(LAYER_SITES) + 2
    assert list(table["layer"].dropna().unique()) == [0, 1]
    assert list(table["place"][:3]) == ["layers.0.attention.qkv.input", "layers.0.attention.qkv.output", "layers.0.key"]
    assert list(table["place"][-2:]) == ["lm_head.input", "lm_head.output"]
    assert table["layer"][-2:].isna().all()


def test_every_site_names_a_tap():
    for site in LAYER_SITES:
        assert site.tap in TAPS
    assert {"final_norm", "logits"} <= set(MODEL_TAPS)


def test_numbers_are_those_of_the_ranges(ranges, table):
    for row in table.itertuples():
        maxima = channel_maxima(ranges, row.place)
        assert row.absmax == maxima.max()
        assert row.channels == len(maxima)
        assert maxima[row.top_channel] == row.absmax
        assert row.outlier_ratio == maxima.max() / np.median(maxima)
        assert [row.p99, row.p99_9, row.p99_99] == [ranges.percentile(row.place, percent) for percent in PERCENTILES]


def test_what_was_not_counted_has_no_percentile(ranges):
    histograms = {name: counts for name, counts in ranges.histograms.items() if name != HOT}
    lacking = dataclasses.replace(ranges, histograms=histograms)
    table = range_table(lacking).set_index("place")
    assert np.isnan(table.loc[HOT, "p99_9"])
    assert table["p99_9"].isna().sum() == 1
    assert table.loc[HOT, "absmax"] == ranges.inputs["layers.1.mlp.down"].max()
    assert shown_histogram(lacking, HOT) is None
    assert place_percentiles(lacking, HOT) == {}
    assert counted_values(lacking, HOT) == 0


def test_dead_channels_have_no_outlier_ratio(ranges):
    dead = torch.zeros(SMALL.hidden_size)
    dead[5] = 2.0
    table = range_table(dataclasses.replace(ranges, inputs={**ranges.inputs, "lm_head": dead})).set_index("place")
    assert np.isnan(table.loc["lm_head.input", "outlier_ratio"])
    assert table.loc["lm_head.input", "top_channel"] == 5
    assert hottest_place(table.reset_index()) == HOT


def test_the_hottest_place_is_an_input_with_an_outlier(table):
    assert hottest_place(table) == HOT


def test_ratio_of_two_tables(table):
    twice = make_ranges(SMALL, spoil={HOT: 50.0, "layers.0.key": 8.0}, scale=2.0)
    ratios = ratio_table(table, range_table(twice))
    assert list(ratios["place"]) == list(table["place"])
    assert ratios["absmax"].to_numpy() == pytest.approx(2.0)
    assert ratios["outlier_ratio"].to_numpy() == pytest.approx(1.0)
    fewer = ratio_table(table, range_table(twice).iloc[:5])
    assert fewer["absmax"].notna().sum() == 5


def test_a_histogram_counts_every_value(ranges):
    edges, per_octave = shown_histogram(ranges, HOT)
    assert len(edges) == len(per_octave) + 1
    assert (np.diff(edges) > 0).all()
    assert edges[0] > 0
    counted = per_octave * np.diff(np.log2(edges))
    assert counted.sum() == pytest.approx(TOKENS * SMALL.intermediate_size)
    assert counted_values(ranges, HOT) == TOKENS * SMALL.intermediate_size
    assert edges[-2] <= ranges.inputs["layers.1.mlp.down"].max() <= edges[-1]


def test_values_spread_evenly_over_octaves_are_a_flat_histogram(ranges):
    values = torch.exp2(torch.linspace(-3, 3, 60_001)[:-1])
    histograms = {**ranges.histograms, HOT: count_bins(magnitude_codes(values), torch.float32)}
    edges, per_octave = shown_histogram(dataclasses.replace(ranges, histograms=histograms), HOT)
    assert edges[0] == 2**-3
    assert edges[-1] == 2**3
    assert per_octave == pytest.approx(10_000, rel=0.01)


def test_zeros_are_left_out_of_a_histogram(ranges):
    zeros = torch.zeros(BINS, dtype=torch.int64)
    zeros[0] = 100
    nothing = dataclasses.replace(ranges, histograms={**ranges.histograms, HOT: zeros})
    assert shown_histogram(nothing, HOT) is None


def test_keys_of_all_heads_are_one_histogram(ranges):
    assert counted_values(ranges, "layers.0.key") == TOKENS * SMALL.num_kv_heads * SMALL.head_dim


def test_top_channels_are_named(ranges):
    top = top_channels(ranges, HOT, 4)
    assert list(top.columns) == ["channel", "name", "absmax", "times_median"]
    assert (top["channel"][0], top["name"][0]) == (3, "channel 3")
    assert top["absmax"].is_monotonic_decreasing
    assert top["times_median"][0] > 30
    assert len(top_channels(ranges, "layers.0.key")) == SMALL.num_kv_heads


@pytest.mark.parametrize(
    ("place", "channel", "name"),
    [
        ("layers.0.key", 1, "head 1"),
        ("layers.0.attention.qkv.input", 7, "channel 7"),
        ("layers.0.attention.qkv.output", 0, "Q head 0, dim 0"),
        ("layers.0.attention.qkv.output", 31, "Q head 3, dim 7"),
        ("layers.0.attention.qkv.output", 32, "K head 0, dim 0"),
        ("layers.0.attention.qkv.output", 47, "K head 1, dim 7"),
        ("layers.0.attention.qkv.output", 48, "V head 0, dim 0"),
        ("layers.0.attention.qkv.output", 63, "V head 1, dim 7"),
        ("layers.0.attention.o.input", 9, "head 1, dim 1"),
        ("layers.0.mlp.gate_up.output", 55, "gate 55"),
        ("layers.0.mlp.gate_up.output", 56, "up 0"),
        ("lm_head.output", 12, "token 12"),
    ],
)
def test_channels_are_called_what_they_are(ranges, place, channel, name):
    assert channel_name(ranges, place, channel) == name


@pytest.mark.parametrize(
    ("name", "side", "place"),
    [
        ("layers.3.mlp.down", "input", "layers.3.mlp.down.input"),
        ("layers.3.mlp.down", "output", "layers.3.mlp.down.output"),
        ("layers.3.mlp.down", "key", "layers.3.mlp.down.input"),
        ("layers.3.down", "input", "layers.3.mlp.down.input"),
        ("layers.3.mlp.down.output", "input", "layers.3.mlp.down.output"),
        ("layers.3.mlp.act", "output", "layers.3.mlp.down.input"),
        ("layers.3.attention_norm", "input", "layers.3.attention.qkv.input"),
        ("layers.3.attention.key", "input", "layers.3.key"),
        ("layers.3.value", "input", "layers.3.value"),
        ("layers.3.residual_pre", "input", None),
        ("layers.3", "input", None),
        ("lm_head", "input", "lm_head.input"),
        ("final_norm", "output", "lm_head.input"),
        ("logits", "input", "lm_head.output"),
        ("embedding", "input", None),
        ("", "input", None),
    ],
)
def test_places_of_taps_and_layers(name, side, place):
    assert place_of(name, side) == place


def test_the_linear_layer_at_a_place():
    assert linear_of("layers.3.key") == linear_of("layers.3.attention.qkv.output") == "layers.3.attention.qkv"
    assert linear_of("lm_head.input") == "lm_head"


@pytest.mark.parametrize("place", ["layers.9.key", "layers.0.mlp.dwn.input", "embedding", ""])
def test_an_unknown_place_is_refused(ranges, place):
    with pytest.raises(CheckpointError, match="the ranges hold no place"):
        channel_maxima(ranges, place)
