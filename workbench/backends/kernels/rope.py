"""RoPE in Triton: many new rows turned at once, and their keys and values written into the cache.

Knows a cache ``[batch, kv_heads, max_len, head_dim]`` in the activations' dtype or INT8. Keys are cached after RoPE.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.backends.kernels.rowwise import integers_of
from workbench.model.ops import AttentionSpec, LayerCache

HEADS = 16  # heads that a program of the RoPE kernel turns at once


@triton.jit
def store_pair(pointer, low, high, mask, DIM: tl.constexpr):
    """Both halves of heads of ``DIM`` values."""
    tl.store(pointer, low, mask=mask)
    tl.store(pointer + DIM // 2, high, mask=mask)


@triton.jit
def turned(first, second, cos, sin):
    """RoPE in float32."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rope_kernel(
    qkv, positions, cos, sin, key_scale, value_scale, query, key_cache, value_cache, key, value, seq, max_len, scale,
    NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    INT8: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.arange(0, HALF)
    inside = pairs < DIM // 2
    batch, step = token // seq, token % seq
    position = tl.load(positions + token)
    turn_cos = tl.load(cos + position * (DIM // 2) + pairs, mask=inside, other=0.0)[None, :]
    turn_sin = tl.load(sin + position * (DIM // 2) + pairs, mask=inside, other=0.0)[None, :]
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + KV_HEADS
    mask = (heads < NUM_HEADS + 2 * KV_HEADS)[:, None] & inside[None, :]
    source = qkv + (token * (NUM_HEADS + 2 * KV_HEADS) + heads[:, None]) * DIM + pairs[None, :]
    first = tl.load(source, mask=mask, other=0.0)
    second = tl.load(source + DIM // 2, mask=mask, other=0.0)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    factor = tl.where(is_query, scale, 1.0)[:, None]
    low, high = turned(wide_first, wide_second, turn_cos, turn_sin)
    low = tl.where(is_value[:, None], wide_first, low * factor).to(first.dtype)
    high = tl.where(is_value[:, None], wide_second, high * factor).to(first.dtype)

    to_query = query + (token * NUM_HEADS + heads[:, None]) * DIM + pairs[None, :]
    store_pair(to_query, low, high, mask & is_query[:, None], DIM)

    # A pad's row may lie beyond the cache; nothing reads it.
    row = position
    kv_head = tl.where(is_value, heads - NUM_HEADS - KV_HEADS, heads - NUM_HEADS)
    cached = mask & (heads >= NUM_HEADS)[:, None] & (row < max_len)
    to_cache = ((batch * KV_HEADS + kv_head[:, None]) * max_len + row) * DIM + pairs[None, :]
    is_key_2d = cached & (heads < NUM_HEADS + KV_HEADS)[:, None]
    is_value_2d = cached & is_value[:, None]
    if INT8:
        at = kv_head if PER_HEAD else kv_head * 0
        real = heads < NUM_HEADS + 2 * KV_HEADS
        is_key = (heads >= NUM_HEADS) & (heads < NUM_HEADS + KV_HEADS)
        key_factor = tl.load(key_scale + at, mask=is_key, other=1.0)
        value_factor = tl.load(value_scale + at, mask=real & is_value, other=1.0)
        head_scale = tl.where(is_value, value_factor, key_factor)[:, None]
        low_int = integers_of(low, head_scale)
        high_int = integers_of(high, head_scale)
        low = (low_int.to(tl.float32) * head_scale).to(first.dtype)
        high = (high_int.to(tl.float32) * head_scale).to(first.dtype)
        to_new = ((batch * KV_HEADS + kv_head[:, None]) * seq + step) * DIM + pairs[None, :]
        store_pair(key + to_new, low, high, is_key_2d, DIM)
        store_pair(value + to_new, low, high, is_value_2d, DIM)
        store_pair(key_cache + to_cache, low_int, high_int, is_key_2d, DIM)
        store_pair(value_cache + to_cache, low_int, high_int, is_value_2d, DIM)
    else:
        store_pair(key_cache + to_cache, low, high, is_key_2d, DIM)
        store_pair(value_cache + to_cache, low, high, is_value_2d, DIM)


def rotate_and_write(
    qkv: Tensor, positions: Tensor, cache: LayerCache[Tensor], spec: AttentionSpec
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """RoPE on query and key; key and value go into the cache at their positions.

    Args:
        qkv: ``[batch, seq, (heads + 2 * kv_heads) * head_dim]``.
        positions: int64 ``[batch, seq]``.
        cache: written in place.
        spec: heads, tables on the device, and scales of an INT8 cache.

    Returns:
        Query ``[batch, seq, heads, head_dim]``, scaled by ``head_dim ** -0.5``; for an INT8 cache also the key and the
        value ``[batch, kv_heads, seq, head_dim]`` as the cache holds them, multiplied back.
    """
    batch, seq, _ = qkv.shape
    query = torch.empty(batch, seq, spec.num_heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
    key = value = None
    if spec.kv_scales is not None:
        shape = (batch, spec.num_kv_heads, seq, spec.head_dim)
        key, value = (torch.empty(shape, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    total = spec.num_heads + 2 * spec.num_kv_heads
    _rope_kernel[(batch * seq, triton.cdiv(total, HEADS))](
        qkv, positions, spec.rotary.cos, spec.rotary.sin, *cache_scales(spec), query, cache.key, cache.value,
        key, value, seq, cache.key.shape[2], spec.head_dim**-0.5,
        NUM_HEADS=spec.num_heads, KV_HEADS=spec.num_kv_heads, DIM=spec.head_dim, BLOCK=HEADS,
        HALF=triton.next_power_of_2(spec.head_dim // 2), **cache_type(spec), num_warps=4,
    )  # fmt: skip
    return query, key, value


def cache_scales(spec: AttentionSpec) -> tuple[Tensor | None, Tensor | None]:
    """Of keys and values, where the cache is INT8."""
    return (None, None) if spec.kv_scales is None else (spec.kv_scales.key, spec.kv_scales.value)


def cache_type(spec: AttentionSpec) -> dict[str, Any]:
    """What kernels are told of the cache at compile time."""
    scales = spec.kv_scales
    return {"INT8": scales is not None, "PER_HEAD": scales is not None and scales.key.numel() > 1}
