"""InternLM2's fused rows, against its own statement of their order in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from random_model import SMALL
from torch import Tensor

from workbench.checkpoint.hf_names import QKV
from workbench.checkpoint.wqkv import join_wqkv, split_wqkv, wqkv_pieces
from workbench.model.config import ModelConfig

HEADS = [(12, 1), (12, 3), (12, 4), (12, 12), (2, 1)]


def _config(heads: int, kv_heads: int) -> ModelConfig:
    return dataclasses.replace(SMALL, num_heads=heads, num_kv_heads=kv_heads, head_dim=6, hidden_size=10)


def _parts(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    rows = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    query, key, value = torch.split(torch.randn(sum(rows), config.hidden_size), rows)
    return query, key, value


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_rows_stand_by_kv_head(heads: int, kv_heads: int) -> None:
    config = _config(heads, kv_heads)
    query, key, value = _parts(config)
    # InternLM2's modelling code reads its projection's rows as (h gs d): KV head, place in its group, channel.
    groups = heads // kv_heads
    by_head = join_wqkv(query, key, value, config).numpy().reshape(kv_heads, groups + 2, 6, 10)
    assert np.array_equal(by_head[:, :groups].reshape(heads * 6, 10), query.numpy())
    assert np.array_equal(by_head[:, -2].reshape(kv_heads * 6, 10), key.numpy())
    assert np.array_equal(by_head[:, -1].reshape(kv_heads * 6, 10), value.numpy())


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_splitting_undoes_joining(heads: int, kv_heads: int) -> None:
    config = _config(heads, kv_heads)
    parts = _parts(config)
    biases = tuple(part[:, 0] for part in parts)
    for tensors in (parts, biases):
        fused = join_wqkv(*tensors, config)
        assert fused.shape == (config.qkv_features, *tensors[0].shape[1:])
        assert all(torch.equal(left, right) for left, right in zip(split_wqkv(fused, config), tensors, strict=True))


def test_pieces_are_views() -> None:
    config = _config(12, 3)
    fused = join_wqkv(*_parts(config), config)
    for part in QKV:
        pieces = wqkv_pieces(fused, config, part)
        assert len(pieces) == 3
        assert {piece.untyped_storage().data_ptr() for piece in pieces} == {fused.untyped_storage().data_ptr()}
