"""Reads tensors out of a file of ``torch.save``, such as ``pytorch_model.bin``. Knows nothing about models.

Such a file is a zip archive of raw values and one pickle that says what they are. A pickle can call anything; this
reader looks first at what it asks for, and lets only what makes tensors be called. Values are views of the mapped file.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.errors import CheckpointError

MAX_DIMENSIONS, MAX_NAME = 8, 500
MAX_PICKLE_BYTES = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_AGAIN = "fetch the file again"
_SAFETENSORS = "get the model as safetensors"
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# What torch.save writes for a dictionary of tensors; none of it does more than make them.
ALLOWED_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(f"torch.{kind}Storage" for kind in _STORAGES),
    }
)


class TorchBinFile:
    """One file; its pickle is read on opening, its values are not.

    Attributes:
        path, bytes: where it is and how large.
        head: the pickle.
        specs: element type and shape of every tensor, in the order of the file.

    Raises:
        CheckpointError: the file is missing, broken, of a form that cannot be mapped, holds something else than named
            tensors, or its pickle asks for more than tensors need; nothing of it has then been run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", fix=_AGAIN)
        self.bytes = path.stat().st_size
        self.head, values_bytes = _read_archive(path)
        _check_globals(path, self.head)
        self._tensors = _named_tensors(path, _load(path))
        _check_storages(path, self._tensors, values_bytes)
        self.specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """A view of one tensor; writing to it does not change the file."""
        return self._tensors[name]


def _read_archive(path: Path) -> tuple[bytes, Counter[int]]:
    """The archive's pickle, and how many pieces of raw values it has of each size in bytes."""
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise CheckpointError(
                f"{path} is no archive of torch.save, or one from before torch 1.6, which cannot be mapped",
                fix=f"load it and save it again with a newer torch, or {_SAFETENSORS}",
            )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{path} is compressed", allowed="values as torch.save writes them", fix=_AGAIN)
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} is no archive of torch.save", allowed="one data.pkl in it", fix=_AGAIN)
            folder = pickles[0].filename.removesuffix("data.pkl") + "data/"
            sizes = Counter(entry.file_size for entry in entries if entry.filename.startswith(folder))
            return archive.read(pickles[0]), sizes
    except CheckpointError:
        raise
    except Exception as error:  # a broken archive makes zipfile raise nearly anything
        raise _broken(path, error) from error


def _check_globals(path: Path, content: bytes) -> None:
    """Refuse a pickle that asks for more than tensors need, before anything runs it."""
    try:
        asked = [_global(opcode.name, argument) for opcode, argument, _ in pickletools.genops(content)]
    except Exception as error:  # not a pickle at all
        raise _broken(path, error) from error
    strange = next((name for name in asked if name is not None and name not in ALLOWED_GLOBALS), None)
    if strange is not None:
        raise CheckpointError(
            f"{path} holds a pickle that asks for {strange[:80]!r}, which could run anything; nothing of it was run",
            allowed="tensors by name, as torch.save(model.state_dict()) writes them",
            fix=_SAFETENSORS,
        )


def _global(opcode: str, argument: Any) -> str | None:
    """What one instruction of a pickle asks for, ``module.name``; None where it asks for nothing."""
    if opcode == "GLOBAL":
        return str(argument).replace(" ", ".")
    # The other ways to name something, none of which torch.save uses.
    return f"{opcode} {argument or ''}".rstrip() if opcode in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4") else None


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's unpickler raises nearly anything for a broken file
        raise _broken(path, error) from error


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The content, if it is what ``torch.save(model.state_dict())`` writes."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}", allowed="tensors by name", fix=_SAFETENSORS)
    return {_checked_name(path, name): _checked_tensor(path, name, value) for name, value in content.items()}


def _checked_name(path: Path, name: Any) -> str:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise CheckpointError(
            f"{path} names a tensor by a {type(name).__name__}", allowed=f"texts of up to {MAX_NAME} letters"
        )
    return name


def _checked_tensor(path: Path, name: str, value: Any) -> Tensor:
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}", allowed="a tensor", fix=_SAFETENSORS)
    # A pickle may say that values are to be negated when they are read, which a view of their bytes would not do.
    tensor: Tensor = value.detach().resolve_neg().resolve_conj()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dim() > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{path}: tensor {name!r} is sparse, quantized or of too many dimensions", fix=_SAFETENSORS
        )
    # Legal in an archive, but kernels want aligned values.
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _check_storages(path: Path, tensors: dict[str, Tensor], values_bytes: Counter[int]) -> None:
    """Refuse a pickle that takes more of the file for a tensor's values than the archive holds for them."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if Counter(storages.values()) - values_bytes - Counter({0: len(tensors)}):
        raise CheckpointError(f"{path} cannot be read (its values and its list of tensors do not fit)", fix=_AGAIN)


def _broken(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split(". ")[0].split())[:160] or type(error).__name__
    return CheckpointError(f"{path} cannot be read ({reason})", fix=_AGAIN)
