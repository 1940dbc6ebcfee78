"""Scales of an INT8 KV cache: K and V apart, per head or per tensor, with or without clipping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.quantization import stated_in_numpy as stated
from tests.quantization.seen_ranges import ranges_of, taps_of
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError
from workbench.quantization.kv_scales import kv_bytes_per_token, layer_kv_scales
from workbench.recipe import Int8KVCache


@pytest.fixture(scope="module")
def source(random_model_dir: Callable[..., Path]) -> HFCheckpoint:
    return HFCheckpoint.open(random_model_dir(kv_heads=2))


def test_per_head_as_stated(source: HFCheckpoint) -> None:
    scales = layer_kv_scales(ranges_of(source.folder), 1, source.config, Int8KVCache())
    taps = taps_of(source.config, source.weights(torch.float32))
    for part, scale in (("key", scales.key), ("value", scales.value)):
        absmax = np.abs(taps[f"layers.1.attention.{part}"].numpy()).max((0, 2, 3))
        assert scale.shape == (2,)
        assert np.array_equal(scale.numpy(), stated.scale_of(absmax))
    assert not torch.equal(scales.key, scales.value)


def test_per_tensor_covers_the_largest_head(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    heads = layer_kv_scales(ranges, 0, source.config, Int8KVCache())
    whole = layer_kv_scales(ranges, 0, source.config, Int8KVCache("per_tensor"))
    assert whole.key.shape == whole.value.shape == ()
    assert whole.key == heads.key.max()
    assert whole.value == heads.value.max()


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0])
def test_a_percentile_clips_that_share(source: HFCheckpoint, percentile: float) -> None:
    scales = layer_kv_scales(ranges_of(source.folder), 0, source.config, Int8KVCache(percentile=percentile))
    taps = taps_of(source.config, source.weights(torch.float32))
    for part, scale in (("key", scales.key), ("value", scales.value)):
        heads = np.abs(taps[f"layers.0.attention.{part}"].numpy()).swapaxes(0, 1).reshape(2, -1)
        exact = np.percentile(heads, percentile, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(127 * scale.numpy(), exact, rtol=0.04)


def test_a_head_of_zeros(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    silent = dataclasses.replace(ranges, values={**ranges.values, 0: torch.tensor([0.0, 2.0])})
    scales = layer_kv_scales(silent, 0, source.config, Int8KVCache())
    assert scales.value[0] == 1
    assert scales.value[1] == torch.tensor(2.0) / 127


def test_ranges_with_other_heads(source: HFCheckpoint) -> None:
    ranges = ranges_of(source.folder)
    other = dataclasses.replace(ranges, keys={**ranges.keys, 0: torch.ones(4)})
    with pytest.raises(CheckpointError, match=r"ranges of the keys of layer 0 are \[4\]; allowed: \[2\]; calibrate"):
        layer_kv_scales(other, 0, source.config, Int8KVCache())


def test_bytes_per_token(source: HFCheckpoint) -> None:
    # 2 layers, key and value, 2 heads of 16 channels.
    assert kv_bytes_per_token(source.config, torch.float16, None) == 256
    assert kv_bytes_per_token(source.config, torch.float16, Int8KVCache()) == 128
