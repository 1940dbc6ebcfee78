"""Turns a folder's safetensors into files of ``torch.save``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from workbench.checkpoint.weight_files import BIN_INDEX_FILE, INDEX_FILE


def to_bin(folder: Path) -> Path:
    """Replace ``model*.safetensors`` and their index, one file at a time; returns the folder."""
    for path in sorted(folder.glob("model*.safetensors")):
        torch.save(load_file(path), folder / _bin_name(path.name))
        path.unlink()
    if (folder / INDEX_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text())
        index["weight_map"] = {name: _bin_name(file) for name, file in index["weight_map"].items()}
        (folder / BIN_INDEX_FILE).write_text(json.dumps(index))
        (folder / INDEX_FILE).unlink()
    return folder


def _bin_name(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
