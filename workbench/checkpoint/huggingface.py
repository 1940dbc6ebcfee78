"""A Hugging Face folder of any InternLM version or a plain Llama: the model's weights, read from its files.

Nothing is read until it is asked for. Tensors go by Llama's names, whatever the version calls them: names, shapes and
where a version stores them come from :mod:`workbench.checkpoint.hf_names`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.hf_config import CONFIG_FILE, read_model_config, ties_embeddings
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.weight_files import WeightFile, find_weights
from workbench.checkpoint.weight_source import WeightSource
from workbench.checkpoint.wqkv import wqkv_pieces
from workbench.errors import CheckpointError, nearest
from workbench.model.config import ModelConfig

__all__ = ["HFCheckpoint", "read_model_config"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# How many values of each tensor the fingerprint looks at.
_FINGERPRINT_VALUES = 64


@dataclass(frozen=True)
class HFCheckpoint(WeightSource):
    """An opened folder: its config is checked, its lists of tensors are read, its weights are not.

    Attributes:
        folder: where it is.
        config: the model's shape.
        files: tensor, by the name under which it is stored -> the file that holds it.
        tied: the LM head is the embedding table where the folder holds no head of its own.
        listing: the file that says which tensors there are.
    """

    folder: Path
    config: ModelConfig
    files: dict[str, WeightFile]
    tied: bool
    listing: Path

    @classmethod
    def open(cls, folder: str | Path) -> HFCheckpoint:
        """Open a folder.

        Raises:
            CheckpointError: no folder, an illegal config, no weights, or a file that is not in its format.
        """
        folder = Path(folder)
        config = read_model_config(folder)
        weights = find_weights(folder)
        return cls(folder, config, weights.by_tensor, ties_embeddings(folder), weights.listing)

    @property
    def location(self) -> Path:
        """The folder."""
        return self.folder

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Stored tensors that the model does not have, in the order of the files; tables of RoPE are not counted."""
        known = hf_names.stored_shapes(self.config)
        # An index need not name every tensor of its shards.
        stored = dict.fromkeys(name for file in dict.fromkeys(self.files.values()) for name in file.specs)
        return tuple(name for name in stored if name not in known and not hf_names.is_rotary_buffer(name))

    def spec(self, name: str) -> TensorSpec:
        """Element type and shape of a tensor, checked against the config.

        Raises:
            CheckpointError: the tensor is unknown or missing, has another shape, or is no float tensor.
        """
        shapes = hf_names.tensor_shapes(self.config)
        if name not in shapes:
            raise CheckpointError(
                f"{self.config.architecture} has no tensor {name!r}", fix=nearest(name, shapes) or None
            )
        return TensorSpec(self._stored_spec(self._place(name).name).dtype, shapes[name])

    def pieces(self, name: str) -> list[Tensor]:
        """The rows of a tensor as views of the mapped file; more than one where the file has them fused with others.

        Raises:
            CheckpointError: as :meth:`spec`.
        """
        self.spec(name)
        place = self._place(name)
        stored = self.files[place.name].tensor(place.name)
        return [stored] if place.part is None else wqkv_pieces(stored, self.config, place.part)

    def describe(self, name: str) -> str:
        """A tensor for messages: its file, and the name under which that has it."""
        stored = self._place(name).name
        return f"{self.files[stored].path}: tensor {stored!r}"

    def fingerprint(self) -> str:
        """Which model this is: SHA-256 over the config, the files' lists of tensors and sizes, and tensors' starts.

        Raises:
            CheckpointError: the folder was moved or deleted since it was opened.
        """
        try:
            digest = hashlib.sha256((self.folder / CONFIG_FILE).read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"the model in {self.folder} was moved or deleted meanwhile", fix="put the folder back, and try again"
            ) from error
        for file in sorted(set(self.files.values()), key=lambda file: file.path.name):
            digest.update(file.head + f"{file.path.name} {file.bytes}".encode())
            for name in file.specs:
                # Trained models that share their lists differ in every tensor.
                digest.update(_start(file.tensor(name)).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _place(self, name: str) -> hf_names.StoredPlace:
        """Where the folder holds a tensor."""
        place = hf_names.stored_place(self.config, name)
        if name == hf_names.LM_HEAD and self.tied and place.name not in self.files:
            return hf_names.stored_place(self.config, hf_names.EMBEDDING)
        return place

    def _stored_spec(self, stored: str) -> TensorSpec:
        """Element type and shape of a tensor by the name under which it is stored, checked against the config."""
        shape = hf_names.stored_shapes(self.config)[stored]
        if stored not in self.files:
            raise CheckpointError(
                f"{self.listing}: tensor {stored!r} is missing",
                allowed=f"one of shape {list(shape)}, as config.json says",
                fix="fetch the file again, or the config.json that belongs to it",
            )
        file = self.files[stored]
        spec = file.specs[stored]
        if spec.shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor {stored!r} is {list(spec.shape)}",
                allowed=f"{list(shape)} by config.json",
                fix="the weights and config.json belong to different models",
            )
        if spec.dtype not in FLOATS:
            allowed = f"a float type of {', '.join(map(str, FLOATS))}"
            raise CheckpointError(f"{file.path}: tensor {stored!r} is {spec.dtype}", allowed=allowed)
        return spec


def _start(tensor: Tensor) -> Tensor:
    """The first values of a tensor, one after another."""
    while not tensor.is_contiguous():
        tensor = tensor[0]
    return tensor.flatten()[:_FINGERPRINT_VALUES].contiguous()
