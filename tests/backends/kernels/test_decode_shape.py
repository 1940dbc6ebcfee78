"""Sizes of the decode kernel: the rules that a session relies on, and that the kernel divides memory by the same."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from importlib import resources

import pytest

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels.decode_shape import (
    CHUNK_STEPS,
    FEWEST_STAGES,
    MOST_UNITS,
    StepShape,
    StepTuning,
    dynamic_shared_bytes,
    options,
    segment,
    splits,
    units_and_stages,
)
from workbench.backends.kernels.skinny_gemm import STEP, Kind

SHAPE_7B = StepShape(1, Kind.FLOAT16, Kind.FLOAT16, 1, 1, 4096, 11008, 32, 32, 128, 103168)
SHARED_BYTES = 227 << 10  # of a block on Hopper
PROCESSORS = 132
# What a C++ compiler must know to read decode_layout.cuh, the layout's own place of the shared memory left out.
CUDA_WORDS = """
typedef unsigned long long u64; typedef unsigned u32; typedef unsigned short u16; typedef long long i64;
#define __constant__
#define __shared__ static
#define __device__
#define __forceinline__
#define __align__(n) __attribute__((aligned(n)))
"""
DYNAMIC = "extern __shared__ __align__(128) char memory[];"
STATIC = (
    "full_barrier", "empty_barrier", "column_scale", "row_largest", "held_start", "angles", "warp_values", "block_best",
    "held_scale", "held_bias", "held_residual", "held",
)  # fmt: skip
OTHERS_BYTES = 128  # single values, and what alignment adds


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_segments_are_whole_chunks_and_hold_a_norms_row(rows: int, kind: Kind) -> None:
    held = segment(replace(SHAPE_7B, rows=rows, kind=kind))
    assert held >= SHAPE_7B.hidden
    assert held % (CHUNK_STEPS * STEP[kind]) == 0
    assert held * rows <= 8 * SHAPE_7B.intermediate


def test_heads_attend_together_in_divisors_of_their_group() -> None:
    assert replace(SHAPE_7B, kv_heads=8).queries == 2
    assert replace(SHAPE_7B, heads=30, kv_heads=10).queries == 1
    assert SHAPE_7B.parts == 32


def test_keys_are_divided_until_every_processor_has_work() -> None:
    assert splits(SHAPE_7B, StepTuning(), 132) == 4
    assert splits(replace(SHAPE_7B, rows=8), StepTuning(), 132) == 1
    assert splits(SHAPE_7B, StepTuning(splits=7), 132) == 7


def _odd_shape(seed: int) -> tuple[StepShape, StepTuning]:
    """Sizes that nobody published, and divisions of the work that no session asks for."""
    draw = random.Random(seed)
    kind = draw.choice(list(Kind))
    groups, kv_heads = draw.choice([1, 2, 4]), draw.choice([1, 2, 3, 8, 32])
    shape = StepShape(
        rows=draw.choice([1, 2, 4, 8]),
        kind=kind,
        head_kind=draw.choice([Kind.FLOAT16, kind]),
        groups=groups,
        subs_per_group=4 // groups,
        hidden=128 * draw.randint(1, 60),
        intermediate=32 * draw.randint(1, 700),
        heads=kv_heads * draw.choice([1, 2, 4, 5]),
        kv_heads=kv_heads,
        head_dim=draw.choice([32, 64, 128]),
        vocab=16 * draw.randint(5, 9000),
        int8_cache=draw.random() < 0.5,
    )
    return shape, StepTuning(
        units=draw.choice([1, 2, 3, 5, 7, 8, 11, 16, MOST_UNITS]), split_rows=draw.choice([8, 512])
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_kernel_divides_its_memory_by_the_same_rules() -> None:
    """Units, chunks of the ring, and that all of it fits: what the kernel's own constants say of odd shapes."""
    layout = resources.files("workbench.backends.kernels").joinpath("decode_layout.cuh").read_text(encoding="utf-8")
    assert DYNAMIC in layout
    held, streamed, kinds = 0, 0, set()
    for seed in range(80):
        shape, tuning = _odd_shape(seed)
        shared = dynamic_shared_bytes(shape, tuning, SHARED_BYTES)
        units, stages = units_and_stages(shape, tuning, shared)
        if stages < FEWEST_STAGES:
            continue
        declared = " + ".join(f"sizeof({name})" for name in STATIC)
        claims = f"""
static_assert(UNITS == {units}, "units");
static_assert(STAGES == {stages}, "stages");
static_assert({declared} + {OTHERS_BYTES} + {shared} <= {SHARED_BYTES}, "declared and dynamic memory");
static_assert(AT_RING + STAGES * SLOT <= {shared}, "the ring");
"""
        macros = options(shape, tuning, shared, PROCESSORS)
        done = subprocess.run(
            ["g++", "-std=c++20", "-fsyntax-only", "-w", "-x", "c++", "-", *macros],
            input=CUDA_WORDS + layout.replace(DYNAMIC, "") + claims, text=True, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (shape, tuning, done.stderr[:2000])
        held += 1
        streamed += shape.rows == 8
        kinds.add(shape.kind)
    assert held >= 40
    assert streamed >= 5
    assert kinds == set(Kind)
