"""Weights that nobody trained, of any size: drawn when they are asked for, and kept by no file.

All tensors of one element type are views of one endless stream of seeded values, which repeats every ``PERIOD``. So a
model of 20 billion parameters costs a second and the memory of its largest tensor, every tensor differs from every
other, and the same seed gives the same model. Quantized kinds draw their integers directly.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.model.config import ModelConfig

# Elements; 64 times a prime, so that no two rows of a matrix and no two layers begin at the same place of the stream.
PERIOD = 64 * 262_139
_ALIGNMENT = 64
# Standard deviation of every matrix, the habit of the field for models that are about to be trained.
DEVIATION = 0.02
# Standard deviation of integers drawn evenly from -127 to 127, and from -7 to 7 two in a byte.
_INTEGER_DEVIATION = {torch.int8: 73.6, torch.uint8: 4.18}
# Static scales stand for inputs, keys and values up to this magnitude.
_INPUT_PEAK = 8.0


@dataclass(frozen=True)
class DummyPlace:
    """Where a tensor begins in the stream of its element type, in elements."""

    spec: TensorSpec
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.spec.elements


class DummyTensors:
    """The tensors of a file that does not exist; read as those of a safetensors file are.

    Args:
        tensors: every tensor's element type and shape, by the names of a Hugging Face folder or of our checkpoint.
        seed: of the values.
    """

    def __init__(self, tensors: Mapping[str, TensorSpec], seed: int = 0) -> None:
        self.seed = seed
        self.places = _lay_out(tensors)
        self._streams: dict[torch.dtype, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """One tensor. Matrices and biases are views, and must not be written to."""
        place, role = self.places[name], name.rpartition(".")[2]
        spec = place.spec
        if _is_matrix(name, spec) or role == "bias":
            return self._view(place.start, spec)
        if role in ("per_channel_scale", "weight_scale"):
            return self._weight_scales(place)
        if role in ("weight", "smoother"):
            return torch.ones(spec.shape, dtype=spec.dtype)
        return torch.full(spec.shape, _INPUT_PEAK / 127, dtype=spec.dtype)

    def stacked(self, names: Sequence[str]) -> Tensor:
        """The rows of several tensors, one after the other; a view where they are neighbours in the stream."""
        places = [self.places[name] for name in names]
        spec = places[0].spec
        length = places[-1].stop - places[0].start
        neighbours = all(left.stop == right.start for left, right in pairwise(places))
        same = all(place.spec.dtype == spec.dtype for place in places)
        if not (_is_matrix(names[0], spec) and same and neighbours and length <= self._longest(spec.dtype)):
            return torch.cat([self.tensor(name) for name in names]) if len(names) > 1 else self.tensor(names[0])
        rows = sum(place.spec.shape[0] for place in places)
        return self._view(places[0].start, TensorSpec(spec.dtype, (rows, *spec.shape[1:])))

    def _view(self, start: int, spec: TensorSpec) -> Tensor:
        first = start % PERIOD
        return self._stream(spec.dtype)[first : first + spec.elements].view(spec.shape)

    def _weight_scales(self, place: DummyPlace) -> Tensor:
        """Between 3/4 and 5/4 of what gives integers the deviation of dense weights."""
        integers = torch.uint8 if place.spec.dtype == torch.float16 else torch.int8
        quarter = self._view(place.start, place.spec) / (4 * DEVIATION * 3**0.5)
        return (1 + quarter) * (DEVIATION / _INTEGER_DEVIATION[integers])

    def _longest(self, dtype: torch.dtype) -> int:
        return _longest(self.places, dtype)

    def _stream(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._streams:
            self._streams[dtype] = _stream(dtype, _stream_elements(self.places, dtype), self.seed)
        return self._streams[dtype]


def dummy_bytes(tensors: Mapping[str, TensorSpec]) -> int:
    """Memory of :class:`DummyTensors` once every tensor was read, however many there are."""
    places = _lay_out(tensors)
    dtypes = {place.spec.dtype for place in places.values()}
    return sum(dtype.itemsize * _stream_elements(places, dtype) for dtype in dtypes)


def dummy_fingerprint(config: ModelConfig, seed: int) -> str:
    """Which dummy model this is: a SHA-256 text."""
    return hashlib.sha256(json.dumps(["dummy", asdict(config), seed]).encode()).hexdigest()


def _is_matrix(name: str, spec: TensorSpec) -> bool:
    return name.endswith("weight") and len(spec.shape) == 2


def _lay_out(tensors: Mapping[str, TensorSpec]) -> dict[str, DummyPlace]:
    """One tensor after the other in the stream of its type; neighbours touch where their sizes are multiples of 64."""
    filled: dict[torch.dtype, int] = {}
    places = {}
    for name, spec in tensors.items():
        start = filled.get(spec.dtype, 0)
        places[name] = DummyPlace(spec, start)
        filled[spec.dtype] = start + -(-spec.elements // _ALIGNMENT) * _ALIGNMENT
    return places


def _longest(places: Mapping[str, DummyPlace], dtype: torch.dtype) -> int:
    """Elements of the longest view: one tensor, or two equal neighbours such as gate and up."""
    own = [place for place in places.values() if place.spec.dtype == dtype]
    single = max(place.spec.elements for place in own)
    pairs = [2 * left.spec.elements for left, right in pairwise(own) if left.spec == right.spec]
    return max(single, *pairs, 0)


def _stream_elements(places: Mapping[str, DummyPlace], dtype: torch.dtype) -> int:
    """What must be held of an endless stream: all that is used of it, or a period and the longest view."""
    used = max(place.stop for place in places.values() if place.spec.dtype == dtype)
    return min(used, PERIOD + _longest(places, dtype))


def _stream(dtype: torch.dtype, elements: int, seed: int) -> Tensor:
    """The first elements of a type's stream: a period is drawn, and repeats."""
    drawn = _drawn(dtype, min(elements, PERIOD), seed)
    if elements <= PERIOD:
        return drawn
    stream = torch.empty(elements, dtype=dtype)
    for first in range(0, elements, PERIOD):
        part = stream[first : first + PERIOD]
        part.copy_(drawn[: len(part)])
    return stream


def _drawn(dtype: torch.dtype, elements: int, seed: int) -> Tensor:
    """Values drawn evenly around zero: reals of deviation :data:`DEVIATION`, or integers."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {dtype}".encode()))
    width = 2 if dtype.is_floating_point else 1
    words = torch.empty(-(-elements * width // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    if dtype.is_floating_point:
        return words.view(torch.int16)[:elements].float().mul_(DEVIATION * 12**0.5 / 2**16).to(dtype)
    integers = words.view(dtype)[:elements]
    if dtype == torch.int8:
        return integers.clamp_(min=-127)
    low, high = integers & 0xF, integers >> 4
    # -8 has no counterpart: without it the mean is zero.
    return low.masked_fill_(low == 8, 0) | high.masked_fill_(high == 8, 0) << 4
