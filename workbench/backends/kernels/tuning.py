"""Tile choices of the skinny products: measured once for a device, then read from disk. Knows kernels, no models.

An empty choice is the library. Choices for the H100 and the shapes of InternLM-7B come with the package; others are
measured when :func:`tune` is asked to, and until then a rule chooses.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.backends.kernels.int8_gemm import Int8Rows, Int8Tiles, int8_linear
from workbench.backends.kernels.nvrtc import cache_dir, timer, write_atomically
from workbench.backends.kernels.rowwise import Quantized, add_rms_norm, swiglu
from workbench.backends.kernels.skinny_gemm import (
    MAX_SHARED_BYTES,
    WORKSPACE_SUMS,
    Kind,
    NormInput,
    SkinnyLinear,
    Tiles,
    column_tiles_of,
)

Table = dict[str, list[int]]
INT8_TILES = (
    Int8Tiles(32, 128, 4, 4),
    Int8Tiles(32, 128, 6, 4),
    Int8Tiles(32, 256, 4, 4),
    Int8Tiles(64, 128, 4, 4),
    Int8Tiles(64, 128, 6, 4),
    Int8Tiles(64, 256, 3, 4),
    Int8Tiles(64, 256, 4, 8),
)
MANY_ROWS = 8192
CACHE_BYTES = 200 << 20  # rotated through while timing, so that no weight is read from the L2 cache


def key_of(linear: SkinnyLinear, columns: int, *, glu: bool) -> str:
    """What a choice depends on beside the device."""
    bucket = columns if columns == 1 else 8 * column_tiles_of(columns)
    name = f"{linear.kind.name.lower()} {linear.rows}x{linear.k} columns {bucket}"
    return f"{name} swiglu" if glu else name


def default_tiles(linear: SkinnyLinear, columns: int, *, glu: bool) -> Tiles | None:
    """A sound choice for any shape: all warps along k for few columns, along rows for more, the library for many."""
    column_tiles = column_tiles_of(columns)
    if column_tiles > 1 and linear.kind in (Kind.FLOAT16, Kind.W8A8):
        return None
    if column_tiles == 1:
        return Tiles(2 if glu else 1, 1, 8, 2 if linear.kind is Kind.FLOAT16 else 1)
    if column_tiles < 8:
        return Tiles(2, 2, 4, 1)
    # As measured for the H100: many rows to a block, since x is wide, and blocks along k where rows are few.
    tiles = Tiles(2, 4, 1, 1, 2) if glu else Tiles(4, 1, 4, 1, 4 if linear.rows < MANY_ROWS else 1)
    return tiles if fits_workspace(tiles, linear, column_tiles) else replace(tiles, split=1)


def choose(linear: SkinnyLinear, columns: int, *, glu: bool) -> Tiles | None:
    """The tuned choice, or the rule's; None where the library's product is faster."""
    tuned = _table(torch.cuda.get_device_name(linear.packed.device)).get(key_of(linear, columns, glu=glu))
    if tuned is None:
        return default_tiles(linear, columns, glu=glu)
    return Tiles(*tuned) if tuned else None


def choose_with_norm(linear: SkinnyLinear, *, glu: bool) -> Tiles | None:
    """The tuned choice for one row whose norm the kernel takes along; None where that was not measured to be faster."""
    tuned = _table(torch.cuda.get_device_name(linear.packed.device)).get(norm_key_of(linear, glu=glu))
    return Tiles(*tuned) if tuned else None


def norm_key_of(linear: SkinnyLinear, *, glu: bool) -> str:
    """What a choice with a norm depends on beside the device."""
    return f"norm {key_of(linear, 1, glu=glu)}"


def choose_int8(linear: SkinnyLinear, columns: int, *, glu: bool) -> Int8Tiles:
    """The tuned choice of :mod:`int8_gemm`, or one that is sound for any shape."""
    tuned = _table(torch.cuda.get_device_name(linear.packed.device)).get(int8_key_of(linear, columns, glu=glu))
    return Int8Tiles(*tuned) if tuned else Int8Tiles(32, 128, 4, 4)


def int8_key_of(linear: SkinnyLinear, columns: int, *, glu: bool) -> str:
    """What a choice of :mod:`int8_gemm` depends on beside the device."""
    return f"int8_gemm {key_of(linear, columns, glu=glu)}"


@functools.cache
def _table(device: str) -> Table:
    """Choices for a device: those of the package, then what was measured here."""
    table: Table = {}
    packaged = resources.files(__package__).joinpath("tiles.json")
    for place in (packaged, cache_dir() / "tiles.json"):
        if place.is_file():
            table |= json.loads(place.read_text(encoding="utf-8")).get(device, {})
    return table


def remember(device: str, choices: Table) -> None:
    """Add measured choices to the table on disk."""
    path = cache_dir() / "tiles.json"
    tables: dict[str, Table] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tables[device] = tables.get(device, {}) | choices
    write_atomically(path, (json.dumps(tables, indent=1, sort_keys=True) + "\n").encode())
    _table.cache_clear()


def candidates(linear: SkinnyLinear, columns: int, *, glu: bool) -> Iterator[Tiles]:
    """Choices worth timing: enough loads in flight to fill a GPU's memory pipes, sums that fit shared memory."""
    column_tiles = column_tiles_of(columns)
    warps = ((1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (4, 1), (4, 2), (4, 4), (8, 1))
    for row_tiles, (warps_m, warps_k), depth, split in itertools.product((1, 2, 4), warps, (1, 2, 4), (1, 2, 4)):
        tiles = Tiles(row_tiles, warps_m, warps_k, depth, split)
        if (row_tiles == 2 or not glu) and _sensible(tiles, linear, column_tiles, glu=glu):
            yield tiles


def _sensible(tiles: Tiles, linear: SkinnyLinear, column_tiles: int, *, glu: bool) -> bool:
    launch = tiles.launch(-(-linear.rows // 16), column_tiles, glu=glu, overlap=False)
    blocks, in_flight = launch.grid[0] * tiles.split, tiles.row_tiles * tiles.depth
    block_tiles = tiles.row_tiles * tiles.warps_m
    if launch.shared_bytes > MAX_SHARED_BYTES or not 2 <= in_flight <= 4 or blocks < 120:
        return False
    if tiles.split > 1 and (launch.grid[0] > 300 or not fits_workspace(tiles, linear, column_tiles)):
        return False
    # Where x is wide, few rows to a block read it again and again; where it is not, few blocks leave processors idle.
    return min(4, column_tiles) <= block_tiles <= 8


def fits_workspace(tiles: Tiles, linear: SkinnyLinear, column_tiles: int) -> bool:
    """Whether the sums of split blocks fit the memory that is set aside for them."""
    return tiles.split * (linear.rows + 128) * 8 * column_tiles <= WORKSPACE_SUMS


def timed_us(run: Callable[[int], Any], turns: int) -> float:
    """Median time in microseconds of one of ``turns`` calls that follow each other in a CUDA graph."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(turns):
            run(turn)
    times = []
    for _ in range(5):
        begin, end = timer(), timer()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / turns)
    return float(statistics.median(times))


def tune_int8(
    linear: SkinnyLinear, columns: int, *, glu: bool = False, overlap: bool = False
) -> tuple[Int8Tiles, float]:
    """As :func:`tune` for :mod:`int8_gemm`: the fastest choice, and its time in microseconds."""
    assert linear.row_scale is not None
    held = linear.packed
    copies = [held, *(held.clone() for _ in range(max(1, CACHE_BYTES // held.nbytes)))]
    weights = [Int8Rows(copy, linear.row_scale, linear.bias) for copy in copies]
    x = torch.randint(-127, 128, (columns, linear.k), device=held.device, dtype=torch.int8)
    quantized = Quantized(x, torch.rand(columns, 1, device=held.device))
    found = []
    for tiles in INT8_TILES:

        def run(turn: int, tiles: Int8Tiles = tiles) -> None:
            weight = weights[turn % len(weights)]
            int8_linear(quantized, weight, tiles, dtype=torch.float16, glu=glu, overlap=overlap)

        found.append((timed_us(run, max(len(copies), 8)), tiles))
    time_us, tiles = min(found)
    return tiles, time_us


def tune(
    linear: SkinnyLinear, columns: int, *, glu: bool = False, overlap: bool = False, norm: bool = False
) -> tuple[Tiles, float]:
    """The fastest choice for one product and the norm before it, and their time in microseconds.

    Args:
        linear: the weight; other weights of its shape serve as well.
        columns: rows of x.
        glu, overlap: see :class:`SkinnyLinear`.
        norm: the kernel takes the norm along; otherwise a kernel of its own comes before.
    """
    held = linear.packed
    copies = [held, *(held.clone() for _ in range(max(1, CACHE_BYTES // held.nbytes)))]
    x = _random_input(linear, columns)

    def fastest(choices: list[Tiles]) -> tuple[float, Tiles]:
        with ThreadPoolExecutor() as pool:  # compiling takes the longest, and does not hold the interpreter's lock
            list(pool.map(lambda tiles: linear.compile(tiles, columns, glu=glu, overlap=overlap, norm=norm), choices))
        found = []
        for tiles in choices:

            def run(turn: int, tiles: Tiles = tiles) -> None:
                linear.packed = copies[turn % len(copies)]
                given: Tensor | NormInput = x.norm
                if not norm:
                    add_rms_norm((x.norm.x, x.norm.residual, x.norm.summed), x.norm.weight, 1e-6, overlap=overlap)
                    given = x.rows
                linear(given, tiles, column_scale=None if norm else x.scale, glu=glu, overlap=overlap)

            found.append((timed_us(run, max(len(copies), 8)), tiles))
        return min(found)

    rule = default_tiles(linear, columns, glu=glu)  # where rows are so few that no choice gives all processors work
    choices = list(candidates(linear, columns, glu=glu)) or [rule or Tiles(2 if glu else 1, 1, 8, 1)]
    try:
        _, tiles = fastest([replace(tiles, prefetch=4) for tiles in choices])
        time_us, tiles = fastest([replace(tiles, prefetch=steps) for steps in (0, 2, 4, 8, 16)])
    finally:
        linear.packed = held
    return tiles, time_us


def library_us(linear: SkinnyLinear, columns: int, *, glu: bool = False, overlap: bool = False) -> float:
    """Time in microseconds of what stands in for :func:`tune`'s choice: the weight expanded, and cuBLAS's product."""
    x = _random_input(linear, columns).norm

    def run(_: int) -> None:
        rows = add_rms_norm((x.x, x.residual, x.summed), x.weight, 1e-6, overlap=overlap)
        weight = linear.packed if linear.kind is Kind.FLOAT16 else linear.expanded()
        y = functional.linear(rows, weight, linear.bias)
        if glu:
            swiglu(y, overlap=overlap)

    return timed_us(run, 8)


@dataclass(frozen=True)
class _Input:
    """Random rows as the kernel takes them, their scale, and a norm that could have made them."""

    rows: Tensor
    scale: Tensor | None
    norm: NormInput


def _random_input(linear: SkinnyLinear, columns: int) -> _Input:
    device = linear.packed.device
    half = torch.randn(3, columns, linear.k, device=device, dtype=torch.float16)
    norm = NormInput(half[0], half[1], torch.empty_like(half[1]), half[2, 0], 1e-6)
    if linear.kind is not Kind.W8A8:
        return _Input(half[2], None, norm)
    integers = torch.randint(-127, 128, (columns, linear.k), device=device, dtype=torch.int8)
    return _Input(integers, torch.rand(columns, 1, device=device), norm)


def as_entry(tiles: Tiles | Int8Tiles) -> list[int]:
    """A choice as the table holds it."""
    return list(astuple(tiles))
