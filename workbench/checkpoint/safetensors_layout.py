"""The safetensors format itself: element types, and where each tensor of a file stands. Reads and writes no files.

A file is an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes without holes.
Source: the format's specification, https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit that the library sets too
_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor will be: its element type and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{DTYPE_NAMES.get(self.dtype, self.dtype)} {list(self.shape)}"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in a file; ``start`` counts bytes from the beginning of the file."""

    spec: TensorSpec
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.spec.bytes


def lay_out(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, TensorPlace]]:
    """The bytes before the first tensor, and every tensor's place.

    Wider element types come first, so that each tensor is aligned to its own; within a type the given order stays.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset, offsets = 0, {}
    for name, spec in ordered:
        offsets[name] = offset
        span = [offset, offset + spec.bytes]
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: TensorPlace(spec, len(head) + offsets[name]) for name, spec in ordered}
