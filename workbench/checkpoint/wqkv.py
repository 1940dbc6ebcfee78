"""InternLM2's fused projection of queries, keys and values: its rows taken apart, and put together.

The rows stand KV head by KV head: first those of the query heads that share it, then its keys', then its values':

    wqkv = [q0 ... q(g-1), k0, v0,  qg ... q(2g-1), k1, v1,  ...]     g query heads for each KV head

so its shape is ``[kv_heads * (groups + 2) * head_dim, hidden]``, a bias's the same without ``hidden``. Opens no files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.checkpoint.hf_names import K, Q, V
from workbench.model.config import ModelConfig


def split_wqkv(fused: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Take the fused projection apart; copies.

    Args:
        fused: weight ``[kv_heads * (groups + 2) * head_dim, hidden]``, or bias without ``hidden``.
        config: the model's heads.

    Returns:
        q ``[heads * head_dim, hidden]``, k and v ``[kv_heads * head_dim, hidden]``, heads in their order.
    """
    query, key, value = (torch.cat(wqkv_pieces(fused, config, part)) for part in (Q, K, V))
    return query, key, value


def join_wqkv(query: Tensor, key: Tensor, value: Tensor, config: ModelConfig) -> Tensor:
    """Put q, k and v together: what :func:`split_wqkv` took apart, of the same shapes."""
    kv_heads, width = config.num_kv_heads, config.head_dim
    heads = [part.reshape(kv_heads, -1, width, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(heads, dim=1).reshape(config.qkv_features, *query.shape[1:])


def wqkv_pieces(fused: Tensor, config: ModelConfig, part: str) -> list[Tensor]:
    """The rows of q, k or v, one view for each KV head.

    Args:
        fused: as :func:`split_wqkv`.
        config: the model's heads.
        part: a member of :data:`workbench.checkpoint.hf_names.QKV`.

    Returns:
        Pieces that stack to the projection: ``groups * head_dim`` rows each for q, ``head_dim`` for k and v.
    """
    groups, width = config.num_heads // config.num_kv_heads, config.head_dim
    first, last = {Q: (0, groups), K: (groups, groups + 1), V: (groups + 1, groups + 2)}[part]
    starts = range(0, config.qkv_features, (groups + 2) * width)
    return [fused[start + first * width : start + last * width] for start in starts]
