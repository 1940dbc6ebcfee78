"""Maxima, magnitudes and bytes of a KV cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hand_made_ranges import TOKENS, make_ranges
from random_model import SMALL

from workbench.evaluation.kv_table import (
    has_kv_histograms,
    hottest_layer,
    kv_histogram,
    kv_layers,
    kv_maxima,
    kv_memory,
)
from workbench.recipe import BuildLimits, Recipe


@pytest.fixture(scope="module")
def ranges():
    return make_ranges(SMALL, spoil={"layers.1.key": 20.0})


def test_maxima_stand_by_head_and_layer(ranges):
    assert kv_layers(ranges) == [0, 1]
    maxima = kv_maxima(ranges, "key")
    assert maxima.shape == (2, 2)
    assert maxima[0, 1] == float(ranges.keys[1][0]) > 10 * maxima[1, 1]
    np.testing.assert_array_equal(kv_maxima(ranges, "value")[:, 0], ranges.values[0].numpy())
    assert hottest_layer(ranges) == 1


def test_magnitudes_of_one_head_and_of_all(ranges):
    """Values over a histogram's octaves give back how many there are."""
    for head, heads in ((None, 2), (0, 1), (1, 1)):
        edges, per_octave = kv_histogram(ranges, (1, "value"), head)
        counted = (per_octave * np.diff(np.log2(edges))).sum()
        assert counted == pytest.approx(TOKENS * SMALL.head_dim * heads)
    assert kv_histogram(ranges, (1, "key"), 0)[0][-1] > 10 * kv_histogram(ranges, (1, "key"), 1)[0][-1]


def test_what_was_not_counted_is_not_there(ranges):
    bare = replace(ranges, kv_histograms={})
    assert kv_histogram(bare, (0, "key")) is None
    assert has_kv_histograms(ranges)
    assert not has_kv_histograms(bare)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_bytes(dtype, item_bytes):
    limits = BuildLimits(max_batch_size=3, max_input_len=20, max_output_len=5)
    memory = kv_memory(SMALL, Recipe(dtype=dtype, build=limits))
    numbers = 2 * SMALL.num_layers * SMALL.num_kv_heads * SMALL.head_dim
    assert memory.dense_bytes_per_token == numbers * item_bytes
    assert memory.int8_bytes_per_token == numbers
    assert memory.saved_bytes_per_token == numbers * (item_bytes - 1)
    assert memory.tokens == 75
    assert (memory.dense_bytes, memory.int8_bytes) == (75 * numbers * item_bytes, 75 * numbers)
