"""Linear layers in the layouts that CPU kernels like best. Knows one weight at a time.

oneDNN's own layout more than halves the time of a matrix-vector product in float32 and bfloat16. It has none for
float16 on most CPUs; there torch's float16 kernel (sums in float32) is the fastest for few rows, float32 for many.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workbench.backends.torch_ops import integer_matmul
from workbench.model.weights import DenseWeight, Int8Weight

FEW_ROWS = 4
FEW_INT8_ROWS = 16


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU's oneDNN multiplies matrices in ``dtype``."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """A copy of ``[out, in]`` in oneDNN's layout, for :func:`packed_linear` only."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, summed in float32 and rounded once."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def linear_once(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` in the dtype of ``x``, for a weight of which no packed copy is kept."""
    if x.dtype == torch.bfloat16 or row_count(x) <= FEW_ROWS or not can_pack(torch.float32):
        return functional.linear(x, weight, bias)
    # Packing for one call costs less than what the faster product saves, in float16 many times over.
    wide_bias = None if bias is None else bias.float()
    return packed_linear(x.float(), pack(weight.float()), wide_bias).to(x.dtype)


def row_count(x: Tensor) -> int:
    """Rows of ``[..., in]`` that one product takes."""
    return x.numel() // x.shape[-1]


class PackedDense:
    """A dense linear layer in ``dtype``, ready to run."""

    def __init__(self, weight: DenseWeight, dtype: torch.dtype) -> None:
        cast = weight.weight.to(dtype)
        self.packed = pack(cast) if can_pack(dtype) else None
        self.weight = None if self.packed is not None else cast
        self.bias = None if weight.bias is None else weight.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return packed_linear(x, self.packed, self.bias)
        assert self.weight is not None
        return linear_once(x, self.weight, self.bias)


class PackedInt8:
    """A weight-only INT8 linear layer in ``dtype``, ready to run. For few rows it reads the integers themselves.

    bfloat16 has a kernel for that. It takes its scale in bfloat16, so what rounding took from the float32 scale is put
    back afterwards. In float16 and float32 the activations are taken apart into integers instead, see
    :func:`digits_of`. Many rows multiply the integers out for each call.
    """

    def __init__(self, weight: Int8Weight, dtype: torch.dtype) -> None:
        self.weight = weight.weight
        self.scale = weight.weight_scale
        self.dtype = dtype
        self.bias = None if weight.bias is None else weight.bias.to(dtype)
        self.wide_bias = None if weight.bias is None else weight.bias.float()
        self.kernel_scale = weight.weight_scale.to(torch.bfloat16)
        self.correction = weight.weight_scale / self.kernel_scale.float()
        self.places = digit_places(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        few = row_count(x) <= FEW_INT8_ROWS
        if self.dtype != torch.bfloat16:
            if few:
                return self._by_digits(x)
            return linear_once(x, (self.weight * self.scale[:, None]).to(self.dtype), self.bias)
        if not few:
            return self._scaled(functional.linear(x, self.weight.to(torch.bfloat16)), self.scale)
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.kernel_scale)
        return self._scaled(y.view(*x.shape[:-1], -1), self.correction)

    def _by_digits(self, x: Tensor) -> Tensor:
        """Exact integer products of every digit, put together by their places in float32."""
        digits, largest = digits_of(x.reshape(-1, x.shape[-1]), self.places)
        products = integer_matmul(digits, self.weight).float().view(len(self.places), -1)
        y = ((1 / self.places) @ products).view(len(largest), -1) * largest
        return self._scaled(y, self.scale).to(self.dtype).view(*x.shape[:-1], -1)

    def _scaled(self, y: Tensor, scale: Tensor) -> Tensor:
        """``y * scale + bias`` in float32, rounded once; ``y`` is given up."""
        if self.wide_bias is None:
            return y.mul_(scale)
        return torch.addcmul(self.wide_bias, y, scale).to(self.dtype)


def digit_places(dtype: torch.dtype) -> Tensor:
    """How many steps each digit divides a row's largest value into, coarse to fine: float32 ``[digits]``.

    The last digit of the two dtypes is 2^-20 and 2^-27 of a row's largest value, well below what they resolve.
    """
    count = 4 if dtype == torch.float32 else 3
    return 2.0 ** torch.arange(6, 6 + 7 * count, 7)


def digits_of(rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Floats as sums of signed digits in base 128, so that exact integer products can stand in for float ones.

    Args:
        rows: ``[rows, in]`` in any float dtype.
        places: see :func:`digit_places`.

    Returns:
        Digits ``[digits, rows, in]`` int8 and each row's largest absolute value ``[rows, 1]`` float32: the row is the
        sum over the digits of ``digit / place``, times the largest.
    """
    wide = rows.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp_min_(1e-30)
    whole = (wide * (places[:, None, None] / largest)).round_()
    digits = whole.clone()
    digits[1:].sub_(whole[:-1], alpha=128)
    return digits.to(torch.int8), largest
