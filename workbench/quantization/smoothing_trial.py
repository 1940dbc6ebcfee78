"""One smoothing group of one layer, quantized at one alpha after another: what that does to the group's output.

Weights, scales and integers are those that a conversion stores; only what an alpha changes is computed again. Knows
nothing about files, and nothing about the other groups but what they divide this one's last rows by.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.backends.torch_ops import TorchOps
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight
from workbench.quantization.quantize import LinearFacts, quantize_linear
from workbench.quantization.smoothquant import GroupScale, column_absmax, group_scale
from workbench.recipe import SmoothQuant


@dataclass(frozen=True)
class GroupError:
    """One smoothing group, quantized at one alpha.

    Attributes:
        layer, group: which one; ``group`` is a key of :data:`workbench.recipe.SMOOTHING_GROUPS`.
        alpha: None where the group is not smoothed.
        error: relative L2 distance of the quantized linear layer's outputs from the dense one's.
        token_error: root of the mean over tokens of the squared relative L2 distance of each token's output. Where a
            few tokens are very large, ``error`` is about them and this is about all.
        input_absmax: ``[in]`` float32 on the CPU, calibrated, after smoothing: what the activations' scales cover.
        weight_absmax: ``[in]`` float32 on the CPU, of the smoothed weight's columns: what the weight's scales cover.
    """

    layer: int
    group: str
    alpha: float | None
    error: float
    token_error: float
    input_absmax: Tensor
    weight_absmax: Tensor

    @property
    def input_spread(self) -> float:
        """How far the activations' largest channel stands above their median channel; 1 is flat."""
        return _spread(self.input_absmax)

    @property
    def weight_spread(self) -> float:
        """How far the weight's largest column stands above its median column; 1 is flat."""
        return _spread(self.weight_absmax)


@dataclass(frozen=True)
class SmoothingGroup:
    """A group's linear layer as the model has it, and what it is tried on; every tensor on one device.

    Attributes:
        layer, group: which one.
        linear: its tap (``layers.3.mlp.down``).
        weight: dense ``[out, in]`` in any float dtype.
        projections: rows of each projection stacked in the weight.
        input_absmax: ``[in]`` float32, calibrated, not smoothed.
        rows: ``[rows, in]`` float32, inputs that calibration did not see.
        exact: ``[rows, out]`` float32, what the dense layer makes of them.
    """

    layer: int
    group: str
    linear: str
    weight: DenseWeight
    projections: Sequence[int]
    input_absmax: Tensor
    rows: Tensor
    exact: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        bias = () if self.weight.bias is None else (self.weight.bias,)
        return sum(t.nbytes for t in (self.weight.weight, *bias, self.input_absmax, self.rows, self.exact))


class SmoothingTrial:
    """A group under trial. Holds its weight twice in float32, as it is and as it was smoothed last.

    Args:
        of: the group.
        config: the model's sizes.
        divisor: what the smoothing of the group that reads them divides this one's last rows by (v's for ``o``, up's
            for ``down``), ``[last rows]``; None where it is not smoothed, or reads nothing of this one.
    """

    def __init__(self, of: SmoothingGroup, config: ModelConfig, divisor: Tensor | None = None) -> None:
        self.of, self.config, self.ops = of, config, TorchOps(torch.float32)
        self.divisor = None if divisor is None else divisor.float()
        self.weight = _divided(of.weight, self.divisor)
        self.weight_absmax = column_absmax(self.weight.weight)
        # Kept: fresh memory for every alpha would cost more than the arithmetic on it.
        self._smoothed = torch.empty_like(self.weight.weight)
        self._lock = threading.Lock()

    def scale(self, alpha: float) -> GroupScale:
        """What the group's input is divided by, in float32."""
        found = group_scale(self.of.group, (self.of.input_absmax, self.weight_absmax), alpha, self.config)
        return GroupScale(found.scale.float(), found.columns.float())

    def at(self, alpha: float | None, how: SmoothQuant) -> GroupError:
        """The group quantized at ``alpha``; None quantizes it as it is. Of ``how`` only the granularities matter.

        Raises:
            CheckpointError: a weight is NaN or infinite.
        """
        with self._lock, torch.inference_mode():
            return self._at(alpha, how)

    def _at(self, alpha: float | None, how: SmoothQuant) -> GroupError:
        weight, inputs, rows, columns = self.weight, self.of.input_absmax, self.of.rows, self.weight_absmax
        if alpha is not None:
            scale = self.scale(alpha).columns
            weight = DenseWeight(torch.mul(weight.weight, scale, out=self._smoothed), weight.bias)
            inputs, rows, columns = inputs / scale, rows / scale, columns * scale
        facts = LinearFacts(self.of.linear, inputs, self.of.projections)
        found = self.ops.linear(rows, quantize_linear(weight, how, torch.float32, facts), self.of.linear)
        if self.divisor is not None:
            found[:, -len(self.divisor) :] *= self.divisor
        error, token_error = relative_errors(found, self.of.exact)
        return GroupError(self.of.layer, self.of.group, alpha, error, token_error, inputs.cpu(), columns.cpu())


def relative_errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative L2 distance of all rows together, and the root mean square of each row's own; summed in float64.

    Args:
        found: ``[rows, out]``.
        exact: the same shape; what lies at zero counts as a distance of zero only where ``found`` does, too.
    """
    far = torch.linalg.vector_norm(found - exact, dim=1, dtype=torch.float64).square()
    whole = torch.linalg.vector_norm(exact, dim=1, dtype=torch.float64).square()
    least = torch.finfo(torch.float64).tiny
    both = torch.stack([far.sum() / whole.sum().clamp_min(least), (far / whole.clamp_min(least)).mean()])
    error, token_error = both.sqrt().tolist()
    return error, token_error


def _divided(weight: DenseWeight, divisor: Tensor | None) -> DenseWeight:
    """In float32, the last rows divided as smoothing divides them; the weight itself where nothing changes."""
    bias = None if weight.bias is None else weight.bias.float()
    wide = weight.weight.float()
    if divisor is None:
        return DenseWeight(wide, bias)
    wide = wide.clone() if wide is weight.weight else wide
    wide[-len(divisor) :] /= divisor[:, None]
    if bias is not None:
        bias = bias.clone()
        bias[-len(divisor) :] /= divisor
    return DenseWeight(wide, bias)


def _spread(maxima: Tensor) -> float:
    median = float(maxima.median())
    return float(maxima.max()) / median if median > 0 else float("inf") if float(maxima.max()) > 0 else 1.0
