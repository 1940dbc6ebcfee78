"""Triton kernels that take whole rows: norm, SwiGLU, quantization, the scales of an integer product.

Each computes in float32 and rounds where the plain op set rounds. Knows tensors of ``[rows, features]`` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# 1.5 * 2^23: adding it rounds a small float32 to an integer, ties to even, which the lowest bits of the sum then hold.
HALF_EVEN = tl.constexpr(12582912.0)
ELEMENTS = 1024


@dataclass(frozen=True)
class Quantized:
    """INT8 rows ``[rows, features]`` and their float32 scale, ``[rows, 1]`` or ``[]``."""

    integers: Tensor
    scale: Tensor


def launch_options(*, overlap: bool, num_warps: int) -> dict[str, Any]:
    """Options of a Triton launch; with ``overlap`` the kernel starts when its predecessor triggers it (sm_90 on)."""
    return {"num_warps": num_warps, **({"launch_pdl": True} if overlap else {})}


@triton.jit
def take_turn(PDL: tl.constexpr):
    """Let the next kernel start, then wait until the previous one has written all that it writes."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _corrected_quotient(x, divisor):
    """``x / divisor`` rounded to nearest, for finite values far from float32's limits, as those of float16 are.

    Two corrections of x times the rounded reciprocal (Markstein, IBM Journal of Research and Development 34, 1990): the
    first leaves less than one unit in the last place, from which the second rounds right. Five operations for a value,
    where ``div_rn`` takes a dozen and a branch that keeps values from being interleaved. A quotient of -0 becomes 0.
    """
    inverse = tl.div_rn(1.0, divisor)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(-quotient, divisor, x), inverse, quotient)
    return tl.fma(tl.fma(-quotient, divisor, x), inverse, quotient)


@triton.jit
def divided(x, divisor):
    """``x / divisor`` in float32, rounded to nearest; a divisor serves many values of x and is no subnormal number."""
    if x.dtype == tl.float16:
        return _corrected_quotient(x.to(tl.float32), divisor)
    else:
        return tl.div_rn(x.to(tl.float32), divisor)


@triton.jit
def integers_of(x, scale):
    """``numerics.quantize_int8``; a scale serves many values of x."""
    wide = x.to(tl.float32)
    if x.dtype == tl.float16:  # clamped before, so that no quotient overflows: what is beyond 127 scales rounds to 127
        limit = 127.0 * scale
        clamped = _corrected_quotient(tl.minimum(tl.maximum(wide, -limit), limit), scale)
    else:
        clamped = tl.minimum(tl.maximum(tl.div_rn(wide, scale), -127.0), 127.0)
    return (clamped + HALF_EVEN).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _row_scale(x, static_scale, STATIC: tl.constexpr):
    """``numerics.absmax_scale`` of a row, or the calibrated scale."""
    if STATIC:
        return tl.load(static_scale)
    scale = tl.div_rn(tl.max(tl.abs(x.to(tl.float32)), 0), 127.0)
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def _norm_kernel(
    x, residual, weight, summed, normed, integers, scale, static_scale, features, eps,
    HAS_RESIDUAL: tl.constexpr, QUANTIZE: tl.constexpr, STATIC: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < features
    weights = tl.load(weight + columns, mask=inside, other=0.0)
    take_turn(PDL)
    total = tl.load(x + row * features + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        other = tl.load(residual + row * features + columns, mask=inside, other=0.0)
        total = (total.to(tl.float32) + other.to(tl.float32)).to(total.dtype)
        tl.store(summed + row * features + columns, total, mask=inside)
    wide = total.to(tl.float32)
    root = tl.sqrt_rn(tl.div_rn(tl.sum(wide * wide, 0), features.to(tl.float32)) + eps)
    y = divided(total, root).to(total.dtype)
    y = (y.to(tl.float32) * weights.to(tl.float32)).to(total.dtype)
    if QUANTIZE:
        row_scale = _row_scale(y, static_scale, STATIC)
        tl.store(integers + row * features + columns, integers_of(y, row_scale), mask=inside)
        if not STATIC:
            tl.store(scale + row, row_scale)
    else:
        tl.store(normed + row * features + columns, y, mask=inside)


@triton.jit
def _quantize_kernel(
    x, integers, scale, static_scale, features,
    STATIC: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < features
    take_turn(PDL)
    values = tl.load(x + row * features + columns, mask=inside, other=0.0)
    row_scale = _row_scale(values, static_scale, STATIC)
    tl.store(integers + row * features + columns, integers_of(values, row_scale), mask=inside)
    if not STATIC:
        tl.store(scale + row, row_scale)


@triton.jit
def _swiglu_kernel(gate_up, y, features, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    take_turn(PDL)
    gate = tl.load(gate_up + row * 2 * features + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * features + columns, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    activated = tl.div_rn(wide, 1.0 + tl.exp(-wide)) * up
    tl.store(y + row * features + columns, activated.to(gate.dtype), mask=inside)


@triton.jit
def _rescale_kernel(
    sums, row_scale, column_scale, bias, y, features,
    PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    token_scale = tl.load(row_scale + (row if PER_ROW else 0))
    scales = token_scale * tl.load(column_scale + columns, mask=inside, other=0.0)
    exact = tl.load(sums + row * features + columns, mask=inside, other=0).to(tl.float32)
    out = (exact * scales).to(y.dtype.element_ty)
    if HAS_BIAS:
        offset = tl.load(bias + columns, mask=inside, other=0.0)
        out = (out.to(tl.float32) + offset.to(tl.float32)).to(out.dtype)
    tl.store(y + row * features + columns, out, mask=inside)


def add_rms_norm(
    tensors: tuple[Tensor, Tensor | None, Tensor], weight: Tensor, eps: float, *, overlap: bool = False
) -> Tensor:
    """``RMSNorm(x + residual) * weight``, ``[rows, features]`` in the dtype of x.

    Args:
        tensors: x, the residual or None, and where their sum goes (x itself where there is no residual).
        weight, eps: of the norm.
        overlap: see :func:`launch_options`.
    """
    normed = torch.empty_like(tensors[0])
    _norm(tensors, weight, eps, (normed, None, None), overlap=overlap)
    return normed


def add_rms_norm_quantized(
    tensors: tuple[Tensor, Tensor | None, Tensor],
    weight: Tensor,
    eps: float,
    static_scale: Tensor | None,
    *,
    overlap: bool = False,
) -> Quantized:
    """As :func:`add_rms_norm` with the norm in INT8, one scale a row where ``static_scale`` is None.

    ``static_scale`` is float32 ``[]`` from calibration.
    """
    x = tensors[0]
    integers = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = _scale_like(x) if static_scale is None else static_scale
    _norm(tensors, weight, eps, (None, integers, scale), static=static_scale is not None, overlap=overlap)
    return Quantized(integers, scale)


def _norm(
    tensors: tuple[Tensor, Tensor | None, Tensor],
    weight: Tensor,
    eps: float,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    static: bool = False,
    overlap: bool,
) -> None:
    x, residual, summed = tensors
    normed, integers, scale = outputs
    rows, features = x.shape
    block = triton.next_power_of_2(features)
    _norm_kernel[(rows,)](
        x, residual, weight, summed, normed, integers, scale, scale, features, eps,
        HAS_RESIDUAL=residual is not None, QUANTIZE=integers is not None, STATIC=static, BLOCK=block, PDL=overlap,
        **launch_options(overlap=overlap, num_warps=_warps(block)),
    )  # fmt: skip


def quantize_rows(x: Tensor, static_scale: Tensor | None, *, overlap: bool = False) -> Quantized:
    """INT8 of ``[rows, features]``, one scale a row where ``static_scale`` is None; ``numerics``' integers exactly."""
    rows, features = x.shape
    integers = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = _scale_like(x) if static_scale is None else static_scale
    block = triton.next_power_of_2(features)
    _quantize_kernel[(rows,)](
        x, integers, scale, scale, features, STATIC=static_scale is not None, BLOCK=block, PDL=overlap,
        **launch_options(overlap=overlap, num_warps=_warps(block)),
    )  # fmt: skip
    return Quantized(integers, scale)


def swiglu(gate_up: Tensor, *, overlap: bool = False) -> Tensor:
    """``silu(gate) * up``: ``[rows, 2 * features] -> [rows, features]``."""
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, features, dtype=gate_up.dtype, device=gate_up.device)
    _swiglu_kernel[(rows, triton.cdiv(features, ELEMENTS))](
        gate_up, y, features, BLOCK=ELEMENTS, PDL=overlap, **launch_options(overlap=overlap, num_warps=4)
    )
    return y


def rescale(sums: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``sums * (row_scale * column_scale)`` rounded to ``dtype``, then the bias.

    Args:
        sums: int32 ``[rows, features]``.
        row_scale: float32 ``[rows, 1]`` or ``[]``.
        column_scale: float32 ``[features]``.
        bias: ``[features]`` in ``dtype``, or None.
        dtype: of the result.
    """
    rows, features = sums.shape
    y = torch.empty(rows, features, dtype=dtype, device=sums.device)
    _rescale_kernel[(rows, triton.cdiv(features, ELEMENTS))](
        sums, row_scale, column_scale, bias, y, features,
        PER_ROW=row_scale.numel() > 1, HAS_BIAS=bias is not None, BLOCK=ELEMENTS, num_warps=4,
    )  # fmt: skip
    return y


def _scale_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
