"""Attention of decoding in Triton, split over the sequence, with RoPE and the write into the cache.

Knows a cache ``[batch, kv_heads, max_len, head_dim]`` in the activations' dtype or INT8. Keys are cached after RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.backends.kernels.rope import cache_scales, cache_type, store_pair, turned
from workbench.backends.kernels.rowwise import integers_of, launch_options, take_turn
from workbench.model.ops import AttentionSpec, LayerCache

KEYS = 64  # keys that a program of the decode kernel reads at once, at most
PROGRAMS = 528  # four for each of an H100's 132 processors: what decoding is split into where the batch is small
MAX_SPLITS = 32
MANY_PROGRAMS = 2048  # an H100's registers hold half as many that read KEYS of an INT8 cache at once


@dataclass(frozen=True)
class NewTokens:
    """What attention over one new token a row works on.

    Attributes:
        qkv: ``[batch, (heads + 2 * kv_heads) * head_dim]``, contiguous.
        start: int32 ``[batch]``: rows that the cache holds, and the position of the new token.
        cache: written in place at row ``start``.
        spec: heads, tables on the device, and scales of an INT8 cache.
    """

    qkv: Tensor
    start: Tensor
    cache: LayerCache[Tensor]
    spec: AttentionSpec

    @property
    def programs(self) -> int:
        """Rows times heads of the cache."""
        return len(self.qkv) * self.spec.num_kv_heads


@dataclass(frozen=True, order=True)
class DecodeTiles:
    """How the kernel divides its work.

    Attributes:
        keys: of the cache that a program reads at once.
        warps: of a program.
        splits: parts of the sequence, a power of two.
        ahead: keys that a program prefetches into the L2 cache while the kernel before still runs; a power of two or 0.
            Lengths and the rows that the cache holds must then be older than the last kernel launched without overlap.
        streamed: what is read of the cache makes room first.
    """

    keys: int
    warps: int
    splits: int
    ahead: int = 0
    streamed: bool = False


@triton.jit
def _floats_of(x):
    """INT8 to float32 through its low mantissa bits, 2^23 + 128 + q: a conversion takes four times as long."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 biased;
        xor.b32 biased, $4, 0x80808080;
        prmt.b32 $0, biased, 0x4b000000, 0x7540;
        prmt.b32 $1, biased, 0x4b000000, 0x7541;
        prmt.b32 $2, biased, 0x4b000000, 0x7542;
        prmt.b32 $3, biased, 0x4b000000, 0x7543;
        sub.f32 $0, $0, 0f4B000080;
        sub.f32 $1, $1, 0f4B000080;
        sub.f32 $2, $2, 0f4B000080;
        sub.f32 $3, $3, 0f4B000080;
        }
        """,
        "=r,=r,=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _halves_of(x):
    """INT8 to float16 through its low mantissa bits, 1024 + 128 + q."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 biased, offset;
        mov.b32 offset, 0x64806480;
        xor.b32 biased, $2, 0x80808080;
        prmt.b32 $0, biased, 0x64646464, 0x4140;
        prmt.b32 $1, biased, 0x64646464, 0x4342;
        sub.f16x2 $0, $0, offset;
        sub.f16x2 $1, $1, offset;
        }
        """,
        "=r,=r,r", [x], dtype=tl.float16, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _held(x, dtype: tl.constexpr, DOT: tl.constexpr, PERMUTE: tl.constexpr):
    """What the cache holds as numbers to calculate with: of ``dtype`` for a dot product, else any that holds them."""
    if PERMUTE and not DOT:
        return _floats_of(x)
    elif PERMUTE and dtype == tl.float16:
        return _halves_of(x)
    else:
        return x.to(dtype)


@triton.jit
def _scores(query, keys, DOT: tl.constexpr):
    """``[group, width] x [keys, width] -> [group, keys]`` float32."""
    if DOT:
        return tl.dot(query, tl.trans(keys), input_precision="ieee")
    else:  # what follows a return is compiled all the same
        return tl.sum(query.to(tl.float32) * keys.to(tl.float32), 1)[None, :]


@triton.jit
def _weighted(weights, values, DOT: tl.constexpr):
    """``[group, keys] x [keys, width] -> [group, width]`` float32."""
    if DOT:
        return tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    else:
        return tl.sum(tl.trans(weights) * values.to(tl.float32), 0)[None, :]


@triton.jit
def _new_query(source, mask, cos, sin, scale, DIM: tl.constexpr):
    """Halves of the group's queries, scaled."""
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2, mask=mask, other=0.0).to(tl.float32)
    low, high = turned(first, second, cos[None, :], sin[None, :])
    return (low * scale).to(source.dtype.element_ty), (high * scale).to(source.dtype.element_ty)


@triton.jit
def _new_key(source, target, cos, sin, factor, writes, pairs, has_pair, DIM: tl.constexpr, INT8: tl.constexpr):
    """The new key's halves as the cache holds them, multiplied back; written to it where ``writes``."""
    dtype = source.dtype.element_ty
    first = tl.load(source + pairs, mask=has_pair, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2 + pairs, mask=has_pair, other=0.0).to(tl.float32)
    low, high = turned(first, second, cos, sin)
    low, high = low.to(dtype), high.to(dtype)
    mask = has_pair & writes
    if INT8:
        low_int, high_int = integers_of(low, factor), integers_of(high, factor)
        store_pair(target + pairs, low_int, high_int, mask, DIM)
        low, high = (low_int.to(tl.float32) * factor).to(dtype), (high_int.to(tl.float32) * factor).to(dtype)
    else:
        store_pair(target + pairs, low, high, mask, DIM)
    return low, high


@triton.jit
def _new_value(source, target, factor, writes, columns, has_column, INT8: tl.constexpr):
    """The new value as the cache holds it, multiplied back; written to it where ``writes``."""
    value = tl.load(source + columns, mask=has_column, other=0.0)
    if INT8:
        integers = integers_of(value, factor)
        tl.store(target + columns, integers, mask=has_column & writes)
        value = (integers.to(tl.float32) * factor).to(value.dtype)
    else:
        tl.store(target + columns, value, mask=has_column & writes)
    return value


@triton.jit
def _combined(partial, stats, head, columns, mask, has_head, DIM: tl.constexpr, SPLITS: tl.constexpr):
    """Context of all splits together; what other programs wrote is read past the L1 cache."""
    largest = tl.full(head.shape, float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        here = tl.load(stats + (head * SPLITS + split) * 2, mask=has_head, other=0.0, cache_modifier=".cg")
        largest = tl.maximum(largest, here)
    total = tl.zeros(head.shape, tl.float32)
    sums = tl.zeros(mask.shape, tl.float32)
    for split in tl.static_range(SPLITS):
        at = head * SPLITS + split
        weight = tl.exp(tl.load(stats + at * 2, mask=has_head, other=0.0, cache_modifier=".cg") - largest)
        total += weight * tl.load(stats + at * 2 + 1, mask=has_head, other=1.0, cache_modifier=".cg")
        part = tl.load(partial + at[:, None] * DIM + columns[None, :], mask=mask, other=0.0, cache_modifier=".cg")
        sums += weight[:, None] * part
    return sums / total[:, None]


@triton.jit
def _finish(
    context, partial, stats, arrived, found, head, columns, has_head, split, DIM: tl.constexpr, SPLITS: tl.constexpr
):
    """Store a split's context, or leave it for the split that comes last, which puts all of them together."""
    sums, largest, total = found
    dtype = context.dtype.element_ty
    mask = has_head[:, None] & (columns < DIM)[None, :]
    to_context = context + head[:, None] * DIM + columns[None, :]
    if SPLITS == 1:
        tl.store(to_context, (sums / total[:, None]).to(dtype), mask=mask)
    else:
        piece = head * SPLITS + split
        tl.store(partial + piece[:, None] * DIM + columns[None, :], sums, mask=mask)
        tl.store(stats + piece * 2, largest, mask=has_head)
        tl.store(stats + piece * 2 + 1, total, mask=has_head)
        tl.debug_barrier()
        ticket = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel", scope="gpu")
        if ticket == SPLITS - 1:
            tl.store(arrived + tl.program_id(0), 0)
            mixed = _combined(partial, stats, head, columns, mask, has_head, DIM, SPLITS)
            tl.store(to_context, mixed.to(dtype), mask=mask)


@triton.jit
def _rows_of_split(length, KEYS: tl.constexpr, SPLITS: tl.constexpr):
    return tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS


@triton.jit
def _prefetch(rows_at, begin, end, DIM: tl.constexpr, AHEAD: tl.constexpr):
    """Bring the first ``AHEAD`` of rows ``begin .. end - 1`` into the L2 cache; of fewer, the last several times."""
    LINE: tl.constexpr = 1024 // rows_at.dtype.element_ty.primitive_bitwidth
    row = tl.maximum(tl.minimum(begin + tl.arange(0, AHEAD), end - 1), 0).to(tl.int64)
    for column in tl.static_range(0, DIM, LINE):
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [rows_at + row * DIM + column],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _over_held_rows(
    query_low, query_high, keys_at, values_at, factor, begin, end, largest, total, sums, pairs, columns,
    DIM: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, PERMUTE: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Softmax so far (its largest score, its total and the weighted values) taken over rows ``begin .. end - 1``."""
    dtype: tl.constexpr = query_low.dtype
    for key_row in range(begin, end, KEYS):
        rows = key_row + tl.arange(0, KEYS)
        held = rows < end
        at = rows.to(tl.int64)[:, None] * DIM
        pair_mask, column_mask = held[:, None] & (pairs < DIM // 2)[None, :], held[:, None] & (columns < DIM)[None, :]
        low_at = keys_at + at + pairs[None, :]
        low = tl.load(low_at, mask=pair_mask, other=0, eviction_policy=EVICTION)
        high = tl.load(low_at + DIM // 2, mask=pair_mask, other=0, eviction_policy=EVICTION)
        values = tl.load(values_at + at + columns[None, :], mask=column_mask, other=0, eviction_policy=EVICTION)
        low, high = _held(low, dtype, DOT, PERMUTE), _held(high, dtype, DOT, PERMUTE)
        values = _held(values, dtype, DOT, PERMUTE)
        scores = (_scores(query_low, low, DOT) + _scores(query_high, high, DOT)) * factor
        scores = tl.where(held[None, :], scores, float("-inf"))
        newest = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - newest)
        weights = tl.exp(scores - newest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + _weighted(weights, values, DOT)
        largest = newest
    return largest, total, sums


@triton.jit
def _begun(
    query_low, query_high, key_low, key_high, value, split, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Softmax over the new row, with which the first split begins; the other splits begin with nothing."""
    own = query_low.to(tl.float32) * key_low.to(tl.float32)[None, :]
    own += query_high.to(tl.float32) * key_high.to(tl.float32)[None, :]
    largest = tl.where(split == 0, tl.sum(own, 1), float("-inf"))
    total = tl.where(split == 0, tl.full([BLOCK], 1.0, tl.float32), 0.0)
    first = tl.where(split == 0, value.to(tl.float32), 0.0)
    return largest, total, tl.zeros([BLOCK, WIDTH], tl.float32) + first[None, :]


@triton.jit
def _decode_kernel(
    qkv, start, cos, sin, key_cache, value_cache, key_scale, value_scale, context, partial, stats, arrived, max_len,
    scale, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, INT8: tl.constexpr,
    PER_HEAD: tl.constexpr, PERMUTE: tl.constexpr, EVICTION: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    batch, kv_head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    group, pairs, columns = tl.arange(0, BLOCK), tl.arange(0, HALF), tl.arange(0, WIDTH)
    DOT: tl.constexpr = BLOCK > 1
    has_pair, has_column = pairs < DIM // 2, columns < DIM
    key_factor = 1.0
    value_factor = 1.0
    if INT8:
        key_factor = tl.load(key_scale + (kv_head if PER_HEAD else 0))
        value_factor = tl.load(value_scale + (kv_head if PER_HEAD else 0))
    base = (batch.to(tl.int64) * KV_HEADS + kv_head) * max_len * DIM
    if PDL and AHEAD > 0:
        end = tl.load(start + batch)
        begin = split * _rows_of_split(end, KEYS, SPLITS)
        _prefetch(key_cache + base, begin, end, DIM, AHEAD)
        _prefetch(value_cache + base, begin, end, DIM, AHEAD)
    take_turn(PDL)
    length = tl.load(start + batch)
    turn_cos = tl.load(cos + length * (DIM // 2) + pairs, mask=has_pair, other=0.0)
    turn_sin = tl.load(sin + length * (DIM // 2) + pairs, mask=has_pair, other=0.0)
    row = qkv + batch.to(tl.int64) * ((NUM_HEADS + 2 * KV_HEADS) * DIM)
    head = kv_head * GROUP + group
    mask = (group < GROUP)[:, None] & has_pair[None, :]
    query_low, query_high = _new_query(row + head[:, None] * DIM + pairs[None, :], mask, turn_cos, turn_sin, scale, DIM)

    new_row = base + length.to(tl.int64) * DIM
    at_key = row + (NUM_HEADS + kv_head) * DIM
    key_low, key_high = _new_key(
        at_key, key_cache + new_row, turn_cos, turn_sin, key_factor, split == 0, pairs, has_pair, DIM, INT8
    )
    at_value = row + (NUM_HEADS + KV_HEADS + kv_head) * DIM
    value = _new_value(at_value, value_cache + new_row, value_factor, split == 0, columns, has_column, INT8)

    largest, total, sums = _begun(query_low, query_high, key_low, key_high, value, split, BLOCK, WIDTH)
    if INT8:
        sums = sums / value_factor
    begin = split * _rows_of_split(length, KEYS, SPLITS)
    end = tl.minimum(length, begin + _rows_of_split(length, KEYS, SPLITS))
    largest, total, sums = _over_held_rows(
        query_low, query_high, key_cache + base, value_cache + base, key_factor, begin, end,
        largest, total, sums, pairs, columns, DIM, KEYS, DOT, PERMUTE, EVICTION,
    )  # fmt: skip
    if INT8:
        sums = sums * value_factor

    out_head = batch.to(tl.int64) * NUM_HEADS + head
    found = sums, largest, total
    _finish(context, partial, stats, arrived, found, out_head, columns, group < GROUP, split, DIM, SPLITS)


def decode(tokens: NewTokens, arrived: Tensor, *, tiles: DecodeTiles | None = None, overlap: bool = False) -> Tensor:
    """One new token a row: RoPE, the write into the cache and attention over it, in one kernel.

    Args:
        tokens: see :class:`NewTokens`.
        arrived: of :func:`split_counters`, for launches that follow each other: one stream.
        tiles: :func:`default_tiles` where None.
        overlap: see :func:`launch_options`.

    Returns:
        ``[batch, heads * head_dim]``.
    """
    qkv, spec, cache = tokens.qkv, tokens.spec, tokens.cache
    tiles = tiles or default_tiles(tokens)
    context = torch.empty(len(qkv), spec.num_heads * spec.head_dim, dtype=qkv.dtype, device=qkv.device)
    partial = stats = None
    if tiles.splits > 1:
        if tokens.programs > len(arrived):
            raise ValueError(f"sequences of {tokens.programs} heads cannot be split with {len(arrived)} counters")
        pieces = len(qkv) * spec.num_heads * tiles.splits
        partial = torch.empty(pieces, spec.head_dim, dtype=torch.float32, device=qkv.device)
        stats = torch.empty(pieces, 2, dtype=torch.float32, device=qkv.device)
    group, width = spec.num_heads // spec.num_kv_heads, max(16, triton.next_power_of_2(spec.head_dim))
    _decode_kernel[(tokens.programs, tiles.splits)](
        qkv, tokens.start, spec.rotary.cos, spec.rotary.sin, cache.key, cache.value, *cache_scales(spec), context,
        partial, stats, arrived, cache.key.shape[2], spec.head_dim**-0.5,
        NUM_HEADS=spec.num_heads, KV_HEADS=spec.num_kv_heads, DIM=spec.head_dim, GROUP=group,
        BLOCK=1 if group == 1 else max(16, triton.next_power_of_2(group)),
        HALF=max(16, triton.next_power_of_2(spec.head_dim // 2)), WIDTH=width, KEYS=tiles.keys, SPLITS=tiles.splits,
        **cache_type(spec), PERMUTE=spec.kv_scales is not None and qkv.is_cuda,  # the interpreter knows no assembly
        EVICTION="evict_first" if tiles.streamed else "", AHEAD=tiles.ahead,
        PDL=overlap, **launch_options(overlap=overlap, num_warps=tiles.warps),
    )  # fmt: skip
    return context


def split_counters(device: torch.device | str) -> Tensor:
    """int32 ``[PROGRAMS]``: splits of a program's rows that are done; zero before and after every launch.

    Enough for what :func:`split_count` splits. CUDA graphs hold the address: whoever records one keeps them.
    """
    return torch.zeros(PROGRAMS, dtype=torch.int32, device=device)


def default_tiles(tokens: NewTokens) -> DecodeTiles:
    """Measured on an H100, see docs/benchmarks.md."""
    splits = split_count(tokens.programs, tokens.cache.key.shape[2])
    if tokens.spec.num_heads > tokens.spec.num_kv_heads:
        return DecodeTiles(KEYS, 4, splits)
    if tokens.cache.key.dtype == torch.int8:
        if tokens.programs >= MANY_PROGRAMS:
            return DecodeTiles(KEYS // 2, 1, splits, ahead=KEYS, streamed=True)
        ahead = KEYS if tokens.programs >= MANY_PROGRAMS // 2 else 0
        return DecodeTiles(KEYS, 1, splits, ahead, streamed=ahead > 0)
    return DecodeTiles(KEYS // 2, 2, splits)


def split_count(programs: int, max_len: int) -> int:
    """Parts of the sequence, a power of two: enough programs for the GPU, no part shorter than one load of keys."""
    wanted = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(max_len, KEYS), MAX_SPLITS)
    return 1 << (int(wanted).bit_length() - 1)
