"""Reads tensors out of safetensors files through the page cache. Knows nothing about models.

A tensor is a view of the mapped file: reading one takes no memory until its values are touched.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint.json_fields import parse_json
from workbench.checkpoint.safetensors_layout import DTYPES, LENGTH_BYTES, MAX_HEADER_BYTES, TensorPlace, TensorSpec
from workbench.checkpoint.safetensors_writer import combine_checksums
from workbench.errors import CheckpointError

_AGAIN = "fetch or write the file again"
MAX_DIMENSIONS, MAX_NAME = 8, 500
_MAX_OFFSET = 2**63 - 1


class SafetensorsFile:
    """One file; only its header is read on opening.

    Attributes:
        path, bytes: where it is and how large.
        head: the bytes before the first tensor.
        places: every tensor's place, in the order of the file.
        specs: every tensor's element type and shape, in that order.

    Raises:
        CheckpointError: the file is missing, shorter than its header states, or not in the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", fix=_AGAIN)
        self.bytes = path.stat().st_size
        self.head = _read_head(path, self.bytes)
        self.places = _places(path, self.head)
        self.specs = {name: place.spec for name, place in self.places.items()}
        end = _end(path, self.places, len(self.head))
        if end != self.bytes:
            fault = "truncated" if end > self.bytes else "too long"
            raise CheckpointError(
                f"{path} is {fault}: it has {self.bytes} bytes", allowed=f"{end} bytes by its header", fix=_AGAIN
            )
        self._map: mmap.mmap | None = None

    def tensor(self, name: str) -> Tensor:
        """A view of one tensor; writing to it does not change the file."""
        return self._view(self.places[name].start, self.places[name].spec)

    def stacked(self, names: Sequence[str]) -> Tensor:
        """Several tensors joined along their first dimension: a view where they are neighbours, else a copy."""
        places = [self.places[name] for name in names]
        same_dtype = len({place.spec.dtype for place in places}) == 1
        if not same_dtype or any(left.stop != right.start for left, right in pairwise(places)):
            return torch.cat([self.tensor(name) for name in names])
        rows = sum(place.spec.shape[0] for place in places)
        return self._view(places[0].start, TensorSpec(places[0].spec.dtype, (rows, *places[0].spec.shape[1:])))

    def checksum(self) -> str:
        """The writer's checksum, computed from the file as it is; reads all of it."""
        with self.path.open("rb") as file:
            digests = [_digest(file, place) for place in self.places.values()]
        return combine_checksums(self.head, digests)

    def _view(self, start: int, spec: TensorSpec) -> Tensor:
        if not spec.elements:
            return torch.empty(spec.shape, dtype=spec.dtype)
        if self._map is None:
            self._map = _map_privately(self.path)
        if start % spec.dtype.itemsize:  # legal in the format, but kernels want aligned values
            values = torch.frombuffer(bytearray(self._map[start : start + spec.bytes]), dtype=spec.dtype)
        else:
            values = torch.frombuffer(self._map, dtype=spec.dtype, count=spec.elements, offset=start)
        return values.view(spec.shape)


def _map_privately(path: Path) -> mmap.mmap:
    """A copy-on-write map: a stray in-place operation can neither crash nor change the file."""
    with path.open("rb") as file:
        if not hasattr(mmap, "MAP_NORESERVE"):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # Without MAP_NORESERVE Linux refuses a private map that is larger than its memory.
        flags = mmap.MAP_PRIVATE | mmap.MAP_NORESERVE
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _read_head(path: Path, file_bytes: int) -> bytes:
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
        if not 0 < length <= MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file ({file_bytes} bytes)", fix=_AGAIN)
        head = start + file.read(length)
    if len(head) < LENGTH_BYTES + length:
        raise CheckpointError(
            f"{path} is truncated: it has {file_bytes} bytes", allowed=f"a header of {length} bytes", fix=_AGAIN
        )
    return head


def _places(path: Path, head: bytes) -> dict[str, TensorPlace]:
    """Every tensor's place, in the order of the file."""
    try:
        header = parse_json(head[LENGTH_BYTES:])
        if not isinstance(header, dict):
            raise ValueError(f"it holds a {type(header).__name__}")
        places = {name: _place(name, entry, len(head)) for name, entry in header.items() if name != "__metadata__"}
    except ValueError as error:
        raise CheckpointError(f"{path} has a header that cannot be read ({error})", fix=_AGAIN) from error
    return dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)))


def _place(name: str, entry: Any, data_start: int) -> TensorPlace:
    """One entry of the header.

    Raises:
        ValueError: it is not what the format allows.
    """
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name):,} letters, more than {MAX_NAME}")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {str(dtype)[:40]!r}, not one of {', '.join(DTYPES)}")
    shape, offsets = _sizes(name, entry["shape"]), _sizes(name, entry["data_offsets"])
    spec = TensorSpec(DTYPES[dtype], shape)
    if len(offsets) != 2 or offsets[1] - offsets[0] != spec.bytes:
        raise ValueError(f"tensor {name!r} has offsets {list(offsets)} for {spec}")
    return TensorPlace(spec, data_start + offsets[0])


def _sizes(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no list of up to {MAX_DIMENSIONS} numbers")
    if not all(type(value) is int and 0 <= value <= _MAX_OFFSET for value in values):
        raise ValueError(f"tensor {name!r} has a shape or offsets with something else than whole numbers from 0")
    return tuple(values)


def _end(path: Path, places: dict[str, TensorPlace], start: int) -> int:
    """Where the last tensor ends; the format has them follow one another."""
    for name, place in places.items():
        if place.start != start:
            fault = "overlaps the tensor before it" if place.start < start else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} {fault}", allowed=f"byte {start} as its start", fix=_AGAIN)
        start = place.stop
    return start


def _digest(file: Any, place: TensorPlace, block_bytes: int = 1 << 24) -> bytes:
    digest = hashlib.sha256()
    file.seek(place.start)
    remaining = place.spec.bytes
    while remaining and (block := file.read(min(block_bytes, remaining))):
        digest.update(block)
        remaining -= len(block)
    return digest.digest()
