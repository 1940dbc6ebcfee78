"""A model of dummy weights where a Hugging Face folder would be: what ``convert`` and ``benchmark`` read from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.dummy import DummyTensors, dummy_bytes, dummy_fingerprint
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.weight_source import WeightSource
from workbench.errors import CheckpointError, nearest
from workbench.model.config import ModelConfig


@dataclass(frozen=True)
class DummyModel(WeightSource):
    """Weights of a shape, drawn when they are asked for.

    Attributes:
        config: the model's shape.
        dtype: of every tensor.
        seed: the same seed gives the same weights.
    """

    config: ModelConfig
    dtype: torch.dtype = torch.float16
    seed: int = 0

    @property
    def held_bytes(self) -> int:
        """Memory of the values that all tensors are views of."""
        return dummy_bytes(self._specs)

    def spec(self, name: str) -> TensorSpec:
        """See :meth:`WeightSource.spec`."""
        if name not in self._specs:
            hint = nearest(name, self._specs)
            raise CheckpointError(f"{self.config.architecture} has no tensor {name!r}", fix=hint or None)
        return self._specs[name]

    def pieces(self, name: str) -> list[Tensor]:
        """See :meth:`WeightSource.pieces`."""
        self.spec(name)
        return [self._tensors.tensor(name)]

    def describe(self, name: str) -> str:
        """See :meth:`WeightSource.describe`."""
        return f"dummy weights: tensor {name!r}"

    def fingerprint(self) -> str:
        """See :meth:`WeightSource.fingerprint`."""
        return dummy_fingerprint(self.config, self.seed)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(self.dtype, shape) for name, shape in hf_names.tensor_shapes(self.config).items()}

    @cached_property
    def _tensors(self) -> DummyTensors:
        return DummyTensors(self._specs, self.seed)
