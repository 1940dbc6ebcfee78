"""``INT8 x INT8`` products of 9 to 64 rows of x, scales and SwiGLU in the same kernel. Written in Triton.

Between the skinny kernel, whose warps each read x for themselves, and cuBLAS, whose int32 sums have to be read again.
Sums are exact; scales, bias and rounding follow the plain op set's order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.backends.kernels.rowwise import Quantized, launch_options, take_turn


@dataclass(frozen=True, order=True)
class Int8Tiles:
    """How the kernel divides its work: rows of the weight a program, values of k at once, loads in flight, warps."""

    rows: int
    depth: int
    stages: int
    warps: int


@triton.jit
def _finished(sums, token_scale, scale_at, bias_at, inside, HAS_BIAS: tl.constexpr, dtype: tl.constexpr):
    """int32 sums to values of ``dtype``, held in float32."""
    scales = token_scale[:, None] * tl.load(scale_at, mask=inside, other=0.0)[None, :]
    y = (sums.to(tl.float32) * scales).to(dtype).to(tl.float32)
    if HAS_BIAS:
        y = (y + tl.load(bias_at, mask=inside, other=0.0).to(tl.float32)[None, :]).to(dtype).to(tl.float32)
    return y


@triton.jit
def _int8_kernel(
    x, weight, token_scale, row_scale, bias, y, tokens, rows, k,
    STATIC: tl.constexpr, HAS_BIAS: tl.constexpr, GLU: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    out = rows // 2 if GLU else rows
    has_row, has_token = own < out, token < tokens
    take_turn(PDL)
    sums = tl.zeros([TOKENS, ROWS], tl.int32)
    up_sums = tl.zeros([TOKENS, ROWS], tl.int32)
    for begin in range(0, k, DEPTH):
        at = begin + tl.arange(0, DEPTH)
        has_k = at < k
        tile = tl.load(x + token[:, None] * k + at[None, :], mask=has_token[:, None] & has_k[None, :], other=0)
        mask = has_row[:, None] & has_k[None, :]
        rows_at = weight + own.to(tl.int64)[:, None] * k + at[None, :]
        sums = tl.dot(tile, tl.trans(tl.load(rows_at, mask=mask, other=0)), sums, out_dtype=tl.int32)
        if GLU:
            up_at = rows_at + out.to(tl.int64) * k
            up_sums = tl.dot(tile, tl.trans(tl.load(up_at, mask=mask, other=0)), up_sums, out_dtype=tl.int32)
    dtype = y.dtype.element_ty
    scale = tl.load(token_scale + (token * 0 if STATIC else token), mask=has_token, other=0.0)
    value = _finished(sums, scale, row_scale + own, bias + own, has_row, HAS_BIAS, dtype)
    if GLU:
        up = _finished(up_sums, scale, row_scale + out + own, bias + out + own, has_row, HAS_BIAS, dtype)
        value = tl.div_rn(value, 1.0 + tl.exp(-value)) * up
    tl.store(y + token[:, None] * out + own[None, :], value.to(dtype), mask=has_token[:, None] & has_row[None, :])


@dataclass(frozen=True)
class Int8Rows:
    """What the kernel reads of a layer: int8 ``[out, in]``, float32 ``[out]``, and a bias or None."""

    weight: Tensor
    row_scale: Tensor
    bias: Tensor | None


def int8_linear(
    x: Quantized, weight: Int8Rows, tiles: Int8Tiles, *, dtype: torch.dtype, glu: bool = False, overlap: bool = False
) -> Tensor:
    """``[tokens, in] -> [tokens, out]`` in ``dtype``, or ``[tokens, out / 2]`` of ``silu(gate) * up``.

    Args:
        x: at most 64 tokens.
        weight: rows are gate, then up, under ``glu``.
        tiles: see :class:`Int8Tiles`.
        dtype: of the result and the bias.
        glu, overlap: see :meth:`workbench.backends.kernels.skinny_gemm.SkinnyLinear.__call__`.
    """
    tokens, k = x.integers.shape
    rows = weight.weight.shape[0]
    out = rows // 2 if glu else rows
    y = torch.empty(tokens, out, dtype=dtype, device=x.integers.device)
    _int8_kernel[(triton.cdiv(out, tiles.rows),)](
        x.integers, weight.weight, x.scale, weight.row_scale, weight.row_scale if weight.bias is None else weight.bias,
        y, tokens, rows, k,
        STATIC=x.scale.numel() == 1, HAS_BIAS=weight.bias is not None, GLU=glu,
        TOKENS=max(16, triton.next_power_of_2(tokens)), ROWS=tiles.rows, DEPTH=tiles.depth, PDL=overlap,
        num_stages=tiles.stages, **launch_options(overlap=overlap, num_warps=tiles.warps),
    )  # fmt: skip
    return y
