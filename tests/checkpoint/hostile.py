"""A tiny model's folder, and the ways in which a test makes it hostile."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.checkpoint.random_model import RandomModelSpec, write_random_model

TINY = RandomModelSpec(layers=1, hidden=16, heads=2, kv_heads=1, intermediate=24, vocab=31)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DOWN_PROJ = "model.layers.0.mlp.down_proj.weight"
HEAD = "lm_head.weight"

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Hostile:
    """A folder with ``config.json`` and ``model.safetensors`` that are whole, to begin with."""

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> Hostile:
        write_random_model(folder, TINY)
        return cls(folder)

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def bin(self) -> Path:
        return self.folder / "pytorch_model.bin"

    # ---- config.json

    def raw_config(self, content: bytes) -> None:
        self.config.write_bytes(content)

    def edit_config(self, **changes: Any) -> None:
        self.config.write_text(json.dumps(json.loads(self.config.read_text()) | changes))

    # ---- model.safetensors

    def tensors(self) -> Tensors:
        return {name: tensor.clone() for name, tensor in load_file(self.weights).items()}

    def edit_tensors(self, edit: Callable[[Tensors], object]) -> None:
        """Change tensors and write them with the library."""
        tensors = self.tensors()
        edit(tensors)
        save_file(tensors, self.weights)

    def edit_header(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Change the header; the tensors' bytes stay."""
        content = self.weights.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        edit(header)
        self.raw_header(json.dumps(header).encode(), content[8 + length :])

    def raw_header(self, header: bytes, data: bytes | None = None, *, length: int | None = None) -> None:
        """Write a header as it is; ``length`` is what the file claims that it has."""
        data = self.weights.read_bytes()[-64:] if data is None else data
        stated = len(header) if length is None else length
        self.weights.write_bytes(struct.pack("<Q", stated) + header + data)

    def cut(self, path: Path, keep: float) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    # ---- indexes and pytorch_model.bin

    def index(self, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
        (self.folder / name).write_text(json.dumps({"weight_map": weight_map}))

    def as_bin(self, edit: Callable[[Tensors], object] = lambda _: None, **how: Any) -> None:
        """The same weights as ``pytorch_model.bin``, after ``edit``."""
        tensors = self.tensors()
        edit(tensors)
        self.save_bin(tensors, **how)

    def save_bin(self, content: Any, **how: Any) -> None:
        """Anything as ``pytorch_model.bin``, and no other weights."""
        self.weights.unlink(missing_ok=True)
        torch.save(content, self.bin, **how)

    def archive(self, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
        """A zip archive as ``pytorch_model.bin``."""
        self.weights.unlink(missing_ok=True)
        with zipfile.ZipFile(self.bin, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    def pickled(self, pickle: bytes) -> None:
        """An archive of ``torch.save`` around a pickle."""
        self.archive({"archive/data.pkl": pickle, "archive/version": b"3\n", "archive/byteorder": b"little"})

    def edit_pickle(self, edit: Callable[[bytes], bytes]) -> None:
        """Change the pickle of ``pytorch_model.bin``; the values stay."""
        with zipfile.ZipFile(self.bin) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        name = next(name for name in entries if name.endswith("data.pkl"))
        self.archive(entries | {name: edit(entries[name])})


class Calls:
    """Unpickles by calling something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def swap(tensors: Tensors, left: str, right: str) -> None:
    tensors[left], tensors[right] = tensors[right], tensors[left]


def poison(value: float) -> Callable[[Tensors], None]:
    """One value of a matrix that shall be quantized becomes another."""

    def edit(tensors: Tensors) -> None:
        tensors[DOWN_PROJ][3, 4] = value

    return edit


def transposed(tensors: Tensors) -> None:
    tensors[DOWN_PROJ] = tensors[DOWN_PROJ].t().contiguous()


def retyped(dtype: torch.dtype) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensor: Tensor = tensors[Q_PROJ]
        tensors[Q_PROJ] = tensor.to(dtype)

    return edit
