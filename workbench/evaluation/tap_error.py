"""How far one tap is from its reference, added up window by window.

A bounded sample of its values is kept, and the error of every token of the first few thousand.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES_PER_TAP = 4096
# The errors of so many tokens are kept, in whole windows and at least one: some 6 MB for a model of 32 layers.
TOKENS_PER_TAP = 4096

# A tap diverges when its relative L2 error passes the value of the candidate's precision. Chosen at about three times
# the largest error of a healthy tap of the embedded model (30 layers) against Hugging Face in float32, so that a
# wrong bias, scale or rotation shows and rounding does not. Float64: our rotary tables are rounded to float32.
# Float32 leaves room for long sequences, since Hugging Face multiplies positions and frequencies in float32.
DIVERGENCE: dict[str, float] = {
    "float64": 1e-6,
    "float32": 1e-4,
    "float16": 0.01,
    "bfloat16": 0.1,
    "int8": 0.2,
    "int8 KV cache": 0.3,
    "smoothquant": 0.6,
    "int4": 2.5,
}


@dataclass(frozen=True)
class TapErrorRow:
    """The four measures of one tap over all windows, and the root mean square of the reference."""

    relative_l2: float
    cosine: float
    snr_db: float
    max_abs: float
    reference_rms: float


class TapError:
    """The error of one tap: sums in float64, so that windows can be added in any number.

    Args:
        name: the tap; it seeds the choice of samples, so the same run draws the same ones.
        windows: how many windows will be added; the samples are spread over them.
    """

    def __init__(self, name: str, windows: int) -> None:
        self._generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        self._share = math.ceil(SAMPLES_PER_TAP / windows)
        self._samples: list[tuple[Tensor, Tensor]] = []
        self._tokens: list[Tensor] = []
        self._reference = self._candidate = self._product = self._difference = 0.0
        self._max_abs, self._count = 0.0, 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Take in one window's tensors, of one shape and any float dtypes, on any device.

        ``[1, seq, features]`` and ``[1, heads, seq, head_dim]`` also give an error per token.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"tap of shape {list(reference.shape)} against one of {list(candidate.shape)}")
        wide = torch.float64 if torch.float64 in (reference.dtype, candidate.dtype) else torch.float32
        x = reference.to(wide)
        y = candidate.to(x.device, wide)
        difference = y - x
        self._max_abs = _max(self._max_abs, float(difference.abs().max()))
        energy, error = _by_token(x * x), _by_token(difference.square_())
        self._reference += _sum(energy)
        self._candidate += _sum(y * y)
        self._product += _sum(x * y)
        self._difference += _sum(error)
        self._count += x.numel()
        self._keep_samples(x.flatten(), y.flatten())
        if x.ndim > 2 and (not self._tokens or (1 + len(self._tokens)) * len(error) <= TOKENS_PER_TAP):
            self._tokens.append((error / energy).where(error != 0, 0.0).sqrt().float().cpu())

    def _keep_samples(self, x: Tensor, y: Tensor) -> None:
        chosen = torch.randint(len(x), (min(self._share, len(x)),), generator=self._generator).to(x.device)
        self._samples.append((x[chosen].float().cpu(), y[chosen].float().cpu()))

    def row(self) -> TapErrorRow:
        """The measures so far. An exact tap has infinite SNR; NaN in either tensor makes all of them NaN."""
        relative = math.sqrt(self._difference / self._reference) if self._reference else _of_zero(self._difference)
        norms = math.sqrt(self._reference) * math.sqrt(self._candidate)
        return TapErrorRow(
            relative_l2=relative,
            cosine=min(self._product / norms, 1.0) if norms else 1.0 - _sign(self._difference),
            snr_db=_decibels(relative),
            max_abs=self._max_abs,
            reference_rms=math.sqrt(self._reference / self._count),
        )

    def samples(self) -> tuple[Tensor, Tensor]:
        """The same random positions of reference and candidate, each ``[at most 4096]`` float32."""
        reference, candidate = zip(*self._samples, strict=True)
        return torch.cat(reference)[:SAMPLES_PER_TAP], torch.cat(candidate)[:SAMPLES_PER_TAP]

    def tokens(self) -> Tensor:
        """The relative L2 error of every token of the first windows: ``[windows, length]`` float32."""
        return torch.stack(self._tokens) if self._tokens else torch.zeros(0, 0)


def diverges(relative_l2: float, precision: str) -> bool:
    """Whether a tap is further off than its precision explains; NaN is."""
    return not relative_l2 <= DIVERGENCE[precision]


def _by_token(squares: Tensor) -> Tensor:
    """``[1, seq, features]`` or ``[1, heads, seq, head_dim]`` -> ``[seq]`` float64; of other shapes one sum."""
    if squares.ndim < 3:
        return squares.sum(dtype=torch.float64)[None]
    return squares.sum(dim=[axis for axis in range(squares.ndim) if axis != squares.ndim - 2], dtype=torch.float64)


def _sum(x: Tensor) -> float:
    return float(x.sum(dtype=torch.float64))


def _max(x: float, y: float) -> float:
    """The larger; unlike ``max``, NaN wins."""
    return y if y > x or math.isnan(y) else x


def _of_zero(difference: float) -> float:
    """Relative error against a reference of zeros."""
    return math.nan if math.isnan(difference) else math.inf if difference else 0.0


def _decibels(relative_l2: float) -> float:
    """Signal to noise in dB; an exact tap's is infinite."""
    return -20 * math.log10(relative_l2) if relative_l2 else math.inf


def _sign(x: float) -> float:
    return math.nan if math.isnan(x) else float(x > 0)
