"""Triton kernels that end a decoding step: the most probable token of every row, where the logits are.

Knows logits ``[rows, vocab]`` only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.backends.kernels.rowwise import launch_options, take_turn

ELEMENTS = 8192  # that one program looks at
LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _keys_kernel(logits, keys, features, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The largest key of a part of a row: the value's bits, made to sort as integers do, above the inverted index."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    columns = part * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    take_turn(PDL)
    values = tl.load(logits + row * features + columns, mask=inside, other=-float("inf")).to(tl.float32)
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # -0 is 0
    bits = tl.where(values != values, LARGEST, bits ^ ((bits >> 31) & LARGEST))
    found = (bits.to(tl.int64) << 32) | (columns ^ LARGEST).to(tl.int64)
    tl.store(keys + row * tl.num_programs(1) + part, tl.max(found, 0))


@triton.jit
def _choose_kernel(keys, ids, start, parts, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    take_turn(PDL)
    found = tl.load(keys + row * parts + at, mask=at < parts, other=-(1 << 63))
    tl.store(ids + row, (tl.max(found, 0) & LARGEST) ^ LARGEST)
    tl.store(start + row, tl.load(start + row) + 1)


def choose_most_probable(logits: Tensor, ids: Tensor, start: Tensor, *, overlap: bool = False) -> None:
    """Write every row's most probable token and count it.

    Of equals the first is taken, and NaN is the largest, as by ``torch.argmax``; 0 and -0 are equal.

    Args:
        logits: ``[rows, vocab]``, contiguous.
        ids: int64 ``[rows]``, written.
        start: int32 ``[rows]``, one more afterwards.
        overlap: see :func:`launch_options`.

    Raises:
        ValueError: the logits are not contiguous.
    """
    if not logits.is_contiguous():
        raise ValueError(f"logits with strides {logits.stride()}: rows must follow each other")
    rows, features = logits.shape
    parts = triton.cdiv(features, ELEMENTS)
    keys = torch.empty(rows, parts, dtype=torch.int64, device=logits.device)
    _keys_kernel[(rows, parts)](
        logits, keys, features, BLOCK=ELEMENTS, PDL=overlap, **launch_options(overlap=overlap, num_warps=8)
    )
    _choose_kernel[(rows,)](
        keys, ids, start, parts, BLOCK=triton.next_power_of_2(parts), PDL=overlap,
        **launch_options(overlap=overlap, num_warps=1),
    )  # fmt: skip
