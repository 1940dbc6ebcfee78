"""Attention kernels against the plain torch op set: on a GPU where there is one, in Triton's interpreter otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerances import TOLERANCE, relative_l2

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels import attention, rope
from workbench.backends.kernels.attention import DecodeTiles, NewTokens
from workbench.backends.torch_ops import TorchOps
from workbench.model.ops import AttentionSpec, LayerCache, NewRows, Step
from workbench.model.rotary import RotaryTables
from workbench.model.weights import KVScales

pytestmark = [pytest.mark.usefixtures("poisoned")]
HALF = torch.float16


@dataclass(frozen=True)
class Sizes:
    heads: int
    kv_heads: int
    dim: int
    scales: str = ""


SIZES = [
    Sizes(4, 4, 16),
    Sizes(2, 2, 128),
    Sizes(8, 2, 64),
    Sizes(3, 1, 80),
    Sizes(4, 2, 32, "head"),
    Sizes(2, 2, 64, "one"),
]


def _spec(sizes: Sizes, device: str, positions: int) -> AttentionSpec:
    angles = torch.arange(positions)[:, None] * 1000.0 ** (-torch.arange(sizes.dim // 2) / (sizes.dim // 2))
    tables = RotaryTables(angles.cos().to(device), angles.sin().to(device))
    scales = None
    if sizes.scales:
        values = torch.linspace(0.02, 0.04, sizes.kv_heads) if sizes.scales == "head" else torch.tensor(0.03)
        scales = KVScales(values.to(device), (values * 1.1).to(device))
    return AttentionSpec("attention", sizes.heads, sizes.kv_heads, sizes.dim, tables, scales)


def _cache(sizes: Sizes, lengths: Tensor, rows: int, device: str) -> LayerCache[Tensor]:
    """Random rows up to each length; beyond them what must not be read."""
    shape = (2, len(lengths), sizes.kv_heads, rows, sizes.dim)
    held = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    if sizes.scales:
        held = (held * 40).round().clamp(-127, 127)
    for row, length in enumerate(lengths.tolist()):
        held[:, row, :, length:] = 127 if sizes.scales else float("nan")
    held = held.to(torch.int8 if sizes.scales else HALF).to(device)
    return LayerCache(held[0].clone(), held[1].clone())


def _step(lengths: Tensor, seq: int, device: str) -> Step[Tensor]:
    positions = lengths[:, None] + torch.arange(seq)
    return Step(torch.zeros(0), positions.long().to(device), lengths.int().to(device))


def _expected(
    qkv: Tensor, step: Step[Tensor], cache: LayerCache[Tensor], spec: AttentionSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle's output, and the rows that it writes; it reads masked rows, so these must be numbers."""
    clean = LayerCache(torch.nan_to_num(cache.key), torch.nan_to_num(cache.value))
    context, update = TorchOps(HALF).attention(qkv, step, clean, spec)
    seq = qkv.shape[1]
    if isinstance(update, NewRows):
        return context, update.key, update.value
    firsts = step.start.tolist()
    key, value = (
        torch.stack([held[:, first : first + seq] for held, first in zip(whole, firsts, strict=True)])
        for whole in (update.key, update.value)
    )
    return context, key, value


def _written(cache: Tensor, step: Step[Tensor], seq: int) -> Tensor:
    firsts = step.start.tolist()
    return torch.stack([held[:, first : first + seq] for held, first in zip(cache, firsts, strict=True)])


def _assert_rows(found: Tensor, expected: Tensor) -> None:
    if expected.dtype != torch.int8:
        assert relative_l2(found, expected) < TOLERANCE[HALF]["op"]
        return
    difference = (found.int() - expected.int()).abs()  # RoPE's last bit may decide a tie
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 5e-3


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("splits", [1, 2])
def test_decoding_matches_the_oracle(triton_device: str, sizes: Sizes, splits: int) -> None:
    _assert_decoding(sizes, torch.tensor([0, 65, 100]), triton_device, splits=splits)


def _assert_decoding(sizes: Sizes, lengths: Tensor, device: str, **choices: Any) -> DecodeTiles:
    """One step after rows of these lengths is the oracle's; the tiles that it took, where ``choices`` left them."""
    longest = int(lengths.max())
    spec = _spec(sizes, device, longest + 100)
    cache, step = _cache(sizes, lengths, longest + 10, device), _step(lengths, 1, device)
    width = (sizes.heads + 2 * sizes.kv_heads) * sizes.dim
    qkv = torch.randn(len(lengths), 1, width, generator=torch.Generator().manual_seed(1)).half().to(device)
    context, key, value = _expected(qkv, step, cache, spec)
    tokens = NewTokens(qkv[:, 0].contiguous(), step.start, cache, spec)
    arrived = attention.split_counters(device)
    tiles = replace(attention.default_tiles(tokens), **choices)
    overlap = device == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    found = attention.decode(tokens, arrived, tiles=tiles, overlap=overlap)
    assert not arrived.any()
    assert relative_l2(found, context[:, 0]) < TOLERANCE[HALF]["op"]
    _assert_rows(_written(cache.key, step, 1), key)
    _assert_rows(_written(cache.value, step, 1), value)
    return tiles


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("sizes", "batch", "longest", "tiles"),
    [
        (Sizes(32, 32, 128), 32, 2048, DecodeTiles(32, 2, 1)),
        (Sizes(32, 32, 128, "head"), 32, 2048, DecodeTiles(64, 1, 1, ahead=64, streamed=True)),
        (Sizes(32, 32, 128, "head"), 64, 700, DecodeTiles(32, 1, 1, ahead=64, streamed=True)),
        (Sizes(32, 32, 128, "one"), 1, 30_000, DecodeTiles(64, 1, 16)),
        (Sizes(32, 8, 128), 3, 30_000, DecodeTiles(64, 4, 16)),
        (Sizes(32, 8, 128, "head"), 64, 2048, DecodeTiles(64, 4, 2)),
    ],
    ids=str,
)
def test_decoding_matches_the_oracle_at_the_sizes_that_are_timed(
    sizes: Sizes, batch: int, longest: int, tiles: DecodeTiles
) -> None:
    lengths = torch.randint(1, longest, (batch,), generator=torch.Generator().manual_seed(5))
    lengths[0] = longest
    assert _assert_decoding(sizes, lengths, "cuda") == tiles


@pytest.mark.parametrize(
    ("sizes", "tiles"),
    [
        (Sizes(2, 2, 64), DecodeTiles(32, 2, 1)),
        (Sizes(2, 2, 64, "head"), DecodeTiles(64, 1, 1, ahead=64, streamed=True)),
        (Sizes(2, 2, 64, "head"), DecodeTiles(32, 1, 1, ahead=64, streamed=True)),
        (Sizes(2, 2, 64, "one"), DecodeTiles(64, 1, 16)),
        (Sizes(4, 1, 64), DecodeTiles(64, 4, 16)),
    ],
    ids=str,
)
def test_tiles_of_large_sizes_decode_small_ones(triton_device: str, sizes: Sizes, tiles: DecodeTiles) -> None:
    _assert_decoding(sizes, torch.tensor([1040, 3]), triton_device, **asdict(tiles))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rope_writes_what_the_oracle_writes(triton_device: str, sizes: Sizes) -> None:
    lengths, seq = torch.tensor([0, 5, 11]), 7
    spec = _spec(sizes, triton_device, 40)
    cache, step = _cache(sizes, lengths, 20, triton_device), _step(lengths, seq, triton_device)
    width = (sizes.heads + 2 * sizes.kv_heads) * sizes.dim
    qkv = torch.randn(3, seq, width, generator=torch.Generator().manual_seed(1)).half().to(triton_device)
    _, key, value = _expected(qkv, step, cache, spec)
    query, own_key, own_value = rope.rotate_and_write(qkv, step.positions, cache, spec)
    expected_query = TorchOps(HALF)._heads(qkv, step.positions, spec)[0].transpose(1, 2)
    assert relative_l2(query, expected_query) < TOLERANCE[HALF]["op"]
    _assert_rows(_written(cache.key, step, seq), key)
    _assert_rows(_written(cache.value, step, seq), value)
    if spec.kv_scales is not None:
        assert own_key is not None
        assert own_value is not None
        for own, held, scale in (
            (own_key, cache.key, spec.kv_scales.key),
            (own_value, cache.value, spec.kv_scales.value),
        ):
            multiplied = (_written(held, step, seq).float() * scale.reshape(-1, 1, 1)).half()
            assert torch.equal(own, multiplied)


def test_pads_beyond_the_cache_are_dropped(triton_device: str) -> None:
    sizes = Sizes(2, 2, 16)
    spec = _spec(sizes, triton_device, 40)
    cache = _cache(sizes, torch.tensor([0, 0]), 4, triton_device)
    step = _step(torch.tensor([0, 0]), 6, triton_device)
    guard = cache.key.clone()
    qkv = torch.randn(2, 6, 96, generator=torch.Generator().manual_seed(1)).half().to(triton_device)
    rope.rotate_and_write(qkv, step.positions, cache, spec)
    assert not torch.isnan(cache.key).any()
    assert guard.shape == cache.key.shape


@pytest.mark.parametrize(
    ("programs", "max_len", "expected"), [(32, 4096, 16), (32, 128, 2), (2048, 4096, 1), (1, 1 << 16, 32), (32, 16, 1)]
)
def test_the_sequence_is_split_where_there_are_few_programs(programs: int, max_len: int, expected: int) -> None:
    assert attention.split_count(programs, max_len) == expected


def _new_tokens(sizes: Sizes, batch: int, device: str) -> NewTokens:
    qkv = torch.zeros(batch, (sizes.heads + 2 * sizes.kv_heads) * sizes.dim, dtype=HALF, device=device)
    lengths = torch.zeros(batch, dtype=torch.int32)
    return NewTokens(qkv, lengths.to(device), _cache(sizes, lengths, 192, device), _spec(sizes, device, 192))


@pytest.mark.parametrize(
    ("sizes", "batch", "expected"),
    [
        (Sizes(32, 32, 16, "per_head"), 64, DecodeTiles(32, 1, 1, ahead=64, streamed=True)),
        (Sizes(32, 32, 16, "per_head"), 63, DecodeTiles(64, 1, 1, ahead=64, streamed=True)),
        (Sizes(32, 32, 16, "per_head"), 32, DecodeTiles(64, 1, 1, ahead=64, streamed=True)),
        (Sizes(32, 32, 16, "per_head"), 31, DecodeTiles(64, 1, 1)),
        (Sizes(32, 32, 16, "per_head"), 4, DecodeTiles(64, 1, 2)),
        (Sizes(32, 32, 16), 64, DecodeTiles(32, 2, 1)),
        (Sizes(64, 32, 16, "per_head"), 64, DecodeTiles(64, 4, 1)),
    ],
)
def test_many_programs_of_an_int8_cache_read_ahead_and_very_many_less_at_once(
    triton_device: str, sizes: Sizes, batch: int, expected: DecodeTiles
) -> None:
    assert attention.default_tiles(_new_tokens(sizes, batch, triton_device)) == expected


def test_more_heads_than_there_are_counters_are_not_split(triton_device: str) -> None:
    tokens = _new_tokens(SIZES[0], 2, triton_device)
    arrived = torch.zeros(4, dtype=torch.int32, device=triton_device)
    with pytest.raises(ValueError, match="sequences of 8 heads cannot be split with 4 counters"):
        attention.decode(tokens, arrived, tiles=DecodeTiles(16, 1, 2))
