"""Which files of a Hugging Face folder hold its tensors, and which file holds which. Knows no tensor by name.

Safetensors are taken before torch's own files where both are there: they need no pickle. Of each kind there is one
file, or shards with an index. Links are followed, since Hugging Face's own cache is made of them; an index may only
name files of its folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.torch_bin import TorchBinFile
from workbench.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"


class WeightFile(Protocol):
    """An opened file of tensors: its list of them is read, their values are not.

    Attributes:
        path, bytes: where it is and how large.
        head: the bytes that list its tensors.
    """

    path: Path
    head: bytes
    bytes: int

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Element type and shape of every tensor, in the order of the file."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A view of one tensor of the mapped file."""
        ...


@dataclass(frozen=True)
class WeightFiles:
    """The files of a folder.

    Attributes:
        listing: the file that says which tensors there are: the index of the shards, or the only file.
        by_tensor: tensor name -> the file that holds it.
    """

    listing: Path
    by_tensor: dict[str, WeightFile]


# In the order in which they are looked for: index, single file, how one is opened.
_KINDS: tuple[tuple[str, str, Callable[[Path], WeightFile]], ...] = (
    (INDEX_FILE, SINGLE_FILE, SafetensorsFile),
    (BIN_INDEX_FILE, BIN_FILE, TorchBinFile),
)


def find_weights(folder: Path) -> WeightFiles:
    """Open the files that hold a folder's tensors.

    Raises:
        CheckpointError: there are none, an index is illegal or does not fit its shards, or a file cannot be read.
    """
    for index, single, open_file in _KINDS:
        if (folder / index).is_file():
            return WeightFiles(folder / index, _from_index(folder / index, open_file))
        if (folder / single).is_file():
            file = open_file(folder / single)
            return WeightFiles(folder / single, dict.fromkeys(file.specs, file))
    raise CheckpointError(
        f"{folder} has no weights",
        allowed=f"{SINGLE_FILE}, or {INDEX_FILE} and the files it names, or the same of {BIN_FILE}",
    )


def _from_index(path: Path, open_file: Callable[[Path], WeightFile]) -> dict[str, WeightFile]:
    index = JsonFields.read(path)
    names = index.section("weight_map").content
    files: dict[str, WeightFile] = {}
    for file_name in names.values():
        # An index may come from anywhere: it must not make us read elsewhere on the disk.
        if not isinstance(file_name, str) or not _is_plain(file_name):
            raise CheckpointError(f"{path} names the file {str(file_name)[:80]!r}", allowed="files of the same folder")
        if file_name not in files:
            files[file_name] = open_file(path.parent / file_name)
    for name, file_name in names.items():
        if name not in files[file_name].specs:
            raise CheckpointError(
                f"{files[file_name].path}: tensor {name[:80]!r} is missing", allowed=f"{path.name} names it"
            )
    return {name: files[file_name] for name, file_name in names.items()}


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file right in the folder."""
    return name.isprintable() and name not in ("", ".", "..") and Path(name).name == name and len(name) <= 255
