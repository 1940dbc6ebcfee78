"""A Hugging Face folder of InternLM v1: which file holds a tensor, and the model's weights read from it.

Nothing is read until it is asked for. Names and shapes come from :mod:`workbench.checkpoint.hf_names`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import cast
from workbench.checkpoint.hf_config import CONFIG_FILE, read_model_config, ties_embeddings
from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.lazy_layers import LazyLayers
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.errors import CheckpointError, nearest
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, LayerWeights, ModelWeights

__all__ = ["HFCheckpoint", "read_model_config"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class HFCheckpoint:
    """An opened folder: its config is checked, its headers are read, its weights are not.

    Attributes:
        folder: where it is.
        config: the model's shape.
        files: tensor name -> the file that holds it.
        tied: the LM head is the embedding table where the folder holds no head of its own.
    """

    folder: Path
    config: ModelConfig
    files: dict[str, SafetensorsFile]
    tied: bool

    @classmethod
    def open(cls, folder: str | Path) -> HFCheckpoint:
        """Open a folder.

        Raises:
            CheckpointError: no folder, an illegal config, no weights, or a file that is not in its format.
        """
        folder = Path(folder)
        config = read_model_config(folder)
        return cls(folder, config, _find_tensors(folder), ties_embeddings(folder))

    def spec(self, name: str) -> TensorSpec:
        """Element type and shape of a tensor, by its HF name, checked against the config.

        Raises:
            CheckpointError: the tensor is unknown or missing, has another shape, or is no float tensor.
        """
        shapes = hf_names.tensor_shapes(self.config)
        if name not in shapes:
            raise CheckpointError(f"InternLM v1 has no tensor {name!r}", fix=nearest(name, shapes) or None)
        stored = self._stored(name)
        if stored not in self.files:
            raise CheckpointError(
                f"{_list_of_tensors(self.folder)}: tensor {stored!r} is missing",
                allowed=f"one of shape {list(shapes[name])}, as config.json says",
                fix="fetch the file again, or the config.json that belongs to it",
            )
        file = self.files[stored]
        spec = file.places[stored].spec
        if spec.shape != shapes[name]:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is {list(spec.shape)}",
                allowed=f"{list(shapes[name])} by config.json",
                fix="the weights and config.json belong to different models",
            )
        if not spec.dtype.is_floating_point:
            raise CheckpointError(f"{file.path}: tensor {name!r} is {spec.dtype}", allowed="a float type")
        return spec

    def tensor(self, name: str) -> Tensor:
        """A tensor by its HF name, a view of the mapped file.

        Raises:
            CheckpointError: as :meth:`spec`.
        """
        self.spec(name)
        stored = self._stored(name)
        return self.files[stored].tensor(stored)

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor, by its HF name."""
        return self.files[self._stored(name)].path

    def check(self) -> None:
        """Check every tensor's presence, shape and type from the headers alone.

        Raises:
            CheckpointError: as :meth:`spec`, for the first tensor that fails.
        """
        for name in hf_names.tensor_shapes(self.config):
            self.spec(name)

    def fingerprint(self) -> str:
        """Which model this is: SHA-256 over the config, the weight files' headers and sizes, and tensors' starts.

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
            for name in file.places:
                # Trained models that share their headers differ in every tensor.
                digest.update(file.tensor(name).flatten()[:64].view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def layers(self, dtype: torch.dtype) -> LazyLayers:
        """The decoder layers in ``dtype``, unquantized; each is read when it is indexed."""
        return LazyLayers(self.config.num_layers, lambda layer: self._layer(layer, dtype))

    def weights(self, dtype: torch.dtype) -> ModelWeights:
        """The whole model in ``dtype``, unquantized; ``.layers`` reads a layer when it is indexed."""
        return ModelWeights(
            layers=self.layers(dtype),
            embedding=self._cast(hf_names.EMBEDDING, dtype),
            final_norm=self._cast(hf_names.FINAL_NORM, dtype),
            lm_head=DenseWeight(self._cast(hf_names.LM_HEAD, dtype)),
        )

    def _layer(self, layer: int, dtype: torch.dtype) -> LayerWeights:
        prefix = hf_names.layer_prefix(layer)
        linears = {site: self._linear(prefix, site, dtype) for site in hf_names.LINEARS}
        return LayerWeights(
            attention_norm=self._cast(prefix + hf_names.ATTENTION_NORM, dtype),
            qkv=linears["attention.qkv"],
            o=linears["attention.o"],
            mlp_norm=self._cast(prefix + hf_names.MLP_NORM, dtype),
            gate_up=linears["mlp.gate_up"],
            down=linears["mlp.down"],
        )

    def _linear(self, prefix: str, site: str, dtype: torch.dtype) -> DenseWeight:
        names = [prefix + projection for projection in hf_names.LINEARS[site]]
        weight = _joined([self._cast(f"{name}.weight", dtype) for name in names])
        if not hf_names.has_bias(self.config, site):
            return DenseWeight(weight)
        return DenseWeight(weight, _joined([self._cast(f"{name}.bias", dtype) for name in names]))

    def _cast(self, name: str, dtype: torch.dtype) -> Tensor:
        return cast(self.tensor(name), dtype, f"{self.path_of(name)}: tensor {name!r}")

    def _stored(self, name: str) -> str:
        """The name under which the folder holds a tensor."""
        tied = name == hf_names.LM_HEAD and self.tied and name not in self.files
        return hf_names.EMBEDDING if tied else name


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _list_of_tensors(folder: Path) -> Path:
    """The file that says which tensors there are: the index of the shards, or the only file."""
    index = folder / INDEX_FILE
    return index if index.is_file() else folder / SINGLE_FILE


def _find_tensors(folder: Path) -> dict[str, SafetensorsFile]:
    path = _list_of_tensors(folder)
    if path.name == INDEX_FILE:
        return _from_index(folder)
    if path.is_file():
        file = SafetensorsFile(path)
        return dict.fromkeys(file.places, file)
    raise CheckpointError(f"{folder} has no weights", allowed=f"{SINGLE_FILE}, or {INDEX_FILE} and the files it names")


def _from_index(folder: Path) -> dict[str, SafetensorsFile]:
    index = JsonFields.read(folder / INDEX_FILE)
    names = index.section("weight_map").content
    files: dict[str, SafetensorsFile] = {}
    for file_name in dict.fromkeys(names.values()):
        # An index may come from anywhere: it must not make us read elsewhere on the disk.
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index.path} names the file {file_name!r}", allowed="files of the same folder")
        files[file_name] = SafetensorsFile(folder / file_name)
    for name, file_name in names.items():
        if name not in files[file_name].places:
            raise CheckpointError(f"{folder / file_name}: tensor {name!r} is missing", allowed=f"{INDEX_FILE} names it")
    return {name: files[file_name] for name, file_name in names.items()}
