"""What an unquantized model is read from, tensor by tensor: a Hugging Face folder, or dummies. Opens no files.

Tensors go by the names of :func:`workbench.checkpoint.hf_names.tensor_shapes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import cast
from workbench.checkpoint.lazy_layers import LazyLayers
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, LayerWeights, ModelWeights


class WeightSource(ABC):
    """A model whose weights are read when they are asked for.

    Attributes:
        config: the model's shape.
    """

    config: ModelConfig

    @property
    def location(self) -> Path | None:
        """The folder that it is read from; None where it is in none."""
        return None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Stored tensors that the model does not have."""
        return ()

    @property
    def held_bytes(self) -> int:
        """Memory that the source itself takes, beside mapped files."""
        return 0

    @abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Element type and shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor, or it is not as the config says.
        """

    @abstractmethod
    def pieces(self, name: str) -> list[Tensor]:
        """The rows of a tensor as views, in one piece or several; they must not be written to.

        Raises:
            CheckpointError: as :meth:`spec`.
        """

    @abstractmethod
    def describe(self, name: str) -> str:
        """A tensor, for messages."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Which model this is: a SHA-256 text."""

    def tensor(self, name: str) -> Tensor:
        """A tensor: a view, or a copy where its rows are in several pieces.

        Raises:
            CheckpointError: as :meth:`spec`.
        """
        return _joined(self.pieces(name))

    def rows(self, name: str, step: int) -> Iterator[Tensor]:
        """The rows of a tensor in their order, at most ``step`` at once, as views.

        Raises:
            CheckpointError: as :meth:`spec`.
        """
        for piece in self.pieces(name):
            yield from torch.split(piece, step)

    def check(self) -> None:
        """Check every tensor's presence, shape and type, reading none.

        Raises:
            CheckpointError: as :meth:`spec`, for the first tensor that fails.
        """
        for name in hf_names.tensor_shapes(self.config):
            self.spec(name)

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
        weight = self._stacked([f"{name}.weight" for name in names], dtype)
        if not hf_names.has_bias(self.config, site):
            return DenseWeight(weight)
        return DenseWeight(weight, self._stacked([f"{name}.bias" for name in names], dtype))

    def _stacked(self, names: list[str], dtype: torch.dtype) -> Tensor:
        return _joined([cast(piece, dtype, self.describe(name)) for name in names for piece in self.pieces(name)])

    def _cast(self, name: str, dtype: torch.dtype) -> Tensor:
        return cast(self.tensor(name), dtype, self.describe(name))


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
