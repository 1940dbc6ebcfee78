"""Writes one safetensors file tensor by tensor, or row by row. Knows nothing about models.

The ``safetensors`` library wants every tensor in memory at once; this writer holds none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor, uint8

from workbench.checkpoint.safetensors_layout import DTYPE_NAMES, TensorSpec, lay_out
from workbench.errors import CheckpointError


class SafetensorsWriter:
    """A context manager: the header is planned first, then tensors arrive in any order.

    Args:
        path: the file to write; replaced when it exists.
        tensors: every tensor's element type and shape.
        metadata: texts for the header's ``__metadata__``.

    Raises:
        CheckpointError: an element type that the format lacks; a tensor that is unknown, comes twice, or differs from
            its plan; on leaving the context, a tensor that never came.
    """

    def __init__(
        self, path: str | Path, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        for name, spec in tensors.items():
            if spec.dtype not in DTYPE_NAMES:
                allowed = ", ".join(map(str, DTYPE_NAMES))
                raise CheckpointError(f"{self.path}: tensor {name!r} is {spec.dtype}", allowed=allowed)
        self._head, self._places = lay_out(tensors, metadata or {})
        self._rows = dict.fromkeys(self._places, 0)
        self._done: set[str] = set()
        self._digests = {name: hashlib.sha256() for name in self._places}

    @property
    def file_bytes(self) -> int:
        """Size of the finished file."""
        return len(self._head) + sum(place.spec.bytes for place in self._places.values())

    @property
    def checksum(self) -> str:
        """SHA-256 over the header, then over each tensor's own SHA-256 in the order of the header."""
        return combine_checksums(self._head, [digest.digest() for digest in self._digests.values()])

    def __enter__(self) -> SafetensorsWriter:
        self._file = self.path.open("wb", buffering=0)
        self._file.write(self._head)
        self._file.truncate(self.file_bytes)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a whole tensor."""
        spec = self._spec(name)
        if self._rows[name] or name in self._done:
            raise CheckpointError(f"{self.path}: tensor {name!r} is written twice")
        self._must_match(name, tensor, spec.shape)
        self._append(name, tensor, at=0)
        self._done.add(name)

    def write_rows(self, name: str, rows: Tensor) -> None:
        """Write the next rows of a tensor, along its first dimension."""
        spec = self._spec(name)
        start = self._rows[name]
        if name in self._done or not spec.shape or start + len(rows) > spec.shape[0]:
            raise CheckpointError(f"{self.path}: tensor {name!r} gets more rows than planned", allowed=str(spec))
        self._must_match(name, rows, (len(rows), *spec.shape[1:]))
        self._append(name, rows, at=start * (spec.bytes // spec.shape[0]))
        self._rows[name] = start + len(rows)
        if self._rows[name] == spec.shape[0]:
            self._done.add(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        missing = [name for name in self._places if name not in self._done]
        if kind is None and missing:
            raise CheckpointError(f"{self.path}: {len(missing)} tensors were never written, the first {missing[0]!r}")

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._places:
            raise CheckpointError(f"{self.path}: tensor {name!r} was not planned")
        return self._places[name].spec

    def _must_match(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        expected = TensorSpec(self._places[name].spec.dtype, shape)
        found = TensorSpec(tensor.dtype, tuple(tensor.shape))
        if found != expected:
            raise CheckpointError(f"{self.path}: tensor {name!r} is {found}", allowed=str(expected))

    def _append(self, name: str, tensor: Tensor, at: int) -> None:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data
        self._file.seek(self._places[name].start + at)
        written = 0
        while written < len(data):  # an unbuffered write may stop at 2 GiB
            written += self._file.write(data[written:])
        self._digests[name].update(data)


def combine_checksums(head: bytes, tensors: list[bytes]) -> str:
    """The checksum of a file from the bytes before its first tensor and each tensor's SHA-256."""
    return hashlib.sha256(head + b"".join(tensors)).hexdigest()
