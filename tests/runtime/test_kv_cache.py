from __future__ import annotations

import pytest
import torch

from tests.random_model import SMALL
from workbench.model.ops import NewRows, WholeCache
from workbench.runtime.kv_cache import BLOCK_ROWS, KVCache


def test_new_rows_are_written_at_each_sequences_own_place() -> None:
    cache = KVCache.allocate(SMALL, 2, 8, torch.int8)
    rows = torch.randint(1, 100, (2, SMALL.num_kv_heads, 2, SMALL.head_dim), dtype=torch.int8)
    cache.apply([NewRows(rows, -rows)] * SMALL.num_layers, torch.tensor([0, 5]))
    key, value = cache.layers[1].key, cache.layers[1].value
    assert torch.equal(key[0, :, 0:2], rows[0])
    assert torch.equal(key[1, :, 5:7], rows[1])
    assert torch.equal(value[1, :, 5:7], -rows[1])
    assert int(key.count_nonzero()) == rows.numel()


def test_a_whole_cache_replaces_the_layers() -> None:
    cache = KVCache.allocate(SMALL, 1, 4, torch.float32)
    key = torch.ones_like(cache.layers[0].key)
    cache.apply([WholeCache(key, key)] * SMALL.num_layers, torch.tensor([0]))
    assert cache.layers[0].key is key


def test_rows_grow_by_doubling_up_to_the_limit_and_keep_their_content() -> None:
    cache = KVCache.allocate(SMALL, 1, BLOCK_ROWS * 3, torch.float32)
    assert cache.rows == BLOCK_ROWS
    held = cache.nbytes
    cache.layers[0].key.fill_(1)
    cache.reserve(BLOCK_ROWS + 1)
    assert cache.rows == 2 * BLOCK_ROWS
    assert cache.nbytes == 2 * held
    assert cache.layers[0].key[:, :, :BLOCK_ROWS].eq(1).all()
    assert cache.layers[0].key[:, :, BLOCK_ROWS:].eq(0).all()
    cache.reserve(BLOCK_ROWS * 3)
    assert cache.rows == 3 * BLOCK_ROWS


def test_more_rows_than_the_limit_are_a_programming_error() -> None:
    with pytest.raises(IndexError, match="9 cache rows asked for, but the cache may hold 8"):
        KVCache.allocate(SMALL, 1, 8, torch.float32).reserve(9)
