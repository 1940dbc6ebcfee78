"""SmoothQuant: moves the range of activations into weights, exactly in real arithmetic and free at run time.

Folds scales into one decoder layer and says what its activations become. Quantizes nothing and reads no files.
Source: SmoothQuant, https://arxiv.org/abs/2211.10438; the groups o and down go beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, LayerWeights, LinearWeight
from workbench.quantization.observed import input_absmax, output_absmax
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant

# A smaller divisor would carry norm weights out of float16's range.
SMALLEST_SCALE = 1e-5


@dataclass(frozen=True)
class SmoothedMaxima:
    """What smoothing makes of one decoder layer's activations; every tensor on the CPU.

    Attributes:
        inputs: linear layer's name -> ``[in]`` absmax of its input after smoothing.
        outputs: linear layer's name -> ``[out]`` absmax of its output after smoothing.
        scales: smoothed group -> what its input is divided by: ``[in]``, or one per KV channel
            ``[kv_heads * head_dim]`` for ``o``.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]


@dataclass(frozen=True)
class SmoothedLayer(SmoothedMaxima):
    """A decoder layer whose smoothing is folded in.

    Attributes:
        weights: dense, where the layer was, in float32 or float64; together they compute what the layer did before.
    """

    weights: LayerWeights

    def maxima(self) -> SmoothedMaxima:
        """The same without the weights, which are as large as the layer."""
        return SmoothedMaxima(self.inputs, self.outputs, self.scales)


def smooth_layer(
    layer: LayerWeights, layer_index: int, config: ModelConfig, ranges: ActivationRanges, how: SmoothQuant
) -> SmoothedLayer:
    """Fold the smoothing of every group that ``how`` names into a copy of ``layer``.

    o's scale goes into the rows and the bias of v, down's into the rows of up, never of gate; the scales of qkv and of
    gate and up go into the norm before them. o and down come first: the others' weight maxima follow from them.

    Args:
        layer: dense weights in any float dtype; computed in float32, or in float64 where they are that.
        layer_index: from 0, the layer's number in ``ranges`` and ``how``.
        config: the model's sizes.
        ranges: of this very model, not smoothed.
        how: alpha and groups; granularities do not matter here.

    Raises:
        CheckpointError: ranges that lack the layer or do not fit it.
    """
    run = _Folding(layer, layer_index, config, ranges)
    for group in ("o", "down", "qkv", "gate_up"):
        alpha = how.alpha_of(layer_index, group)
        if alpha is not None:
            run.fold(group, alpha)
    return run.result()


def smoothing_scale(input_maxima: Tensor, weight_maxima: Tensor, alpha: float) -> Tensor:
    """``max|X|^alpha / max|W|^(1 - alpha)`` by channel, computed in float64 and at least :data:`SMALLEST_SCALE`.

    A channel whose activations or weights are all zero gets 1.

    Args:
        input_maxima: ``[in]`` absmax of the activations.
        weight_maxima: ``[in]`` absmax of the weights that read them.
        alpha: 0 to 1.

    Returns:
        ``[in]`` float64.
    """
    x, w = input_maxima.double(), weight_maxima.double()
    scale = (x**alpha / w ** (1 - alpha)).clamp(min=SMALLEST_SCALE)
    return torch.where((x > 0) & (w > 0), scale, torch.ones_like(scale))


@dataclass(frozen=True)
class GroupScale:
    """What one smoothing group's input is divided by.

    Attributes:
        scale: by channel of what feeds the group: ``[in]``, or one per KV channel ``[kv_heads * head_dim]`` for ``o``.
        columns: ``[in]``, the same for every input channel; query heads that share a KV head have equal ones.
    """

    scale: Tensor
    columns: Tensor


def group_scale(group: str, maxima: tuple[Tensor, Tensor], alpha: float, config: ModelConfig) -> GroupScale:
    """The scale of a smoothing group.

    Args:
        group: a key of :data:`workbench.recipe.SMOOTHING_GROUPS`.
        maxima: ``[in]`` absmax of the group's input, and of its weight's columns with whatever was folded in before.
        alpha: 0 to 1.
        config: the model's sizes.

    Returns:
        Both float64.
    """
    if group != "o":
        scale = smoothing_scale(*maxima, alpha)
        return GroupScale(scale, scale)
    # v makes one channel for all the query heads that share its head: the largest of them decides.
    kv_heads, head_dim = config.num_kv_heads, config.head_dim
    inputs, weights = (each.view(kv_heads, -1, head_dim).amax(1).flatten() for each in maxima)
    scale = smoothing_scale(inputs, weights, alpha)
    shared = config.num_heads // kv_heads
    return GroupScale(scale, scale.view(kv_heads, 1, head_dim).expand(-1, shared, -1).flatten())


def column_absmax(weight: Tensor) -> Tensor:
    """``[out, in] -> [in]``: the largest magnitude of each input channel; no copy of the matrix is made."""
    low, high = weight.aminmax(dim=0)
    return torch.maximum(-low, high)


class _Folding:
    """One layer while its groups are folded, one after the other."""

    def __init__(self, layer: LayerWeights, index: int, config: ModelConfig, ranges: ActivationRanges) -> None:
        self.config, self.index = config, index
        self.linears = {group: _copied(getattr(layer, group)) for group in SMOOTHING_GROUPS}
        self.norms = {
            "qkv": _widened(layer.attention_norm),
            "gate_up": _widened(layer.mlp_norm),
        }
        self.scales: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for group, linear in self.linears.items():
            rows, columns = linear.weight.shape
            device = linear.weight.device
            self.inputs[group] = input_absmax(ranges, self.name(group), columns).to(device)
            self.outputs[group] = output_absmax(ranges, self.name(group), rows).to(device)

    def name(self, group: str) -> str:
        return f"layers.{self.index}.{SMOOTHING_GROUPS[group]}"

    def fold(self, group: str, alpha: float) -> None:
        """Multiply the group's columns by its scale, and divide what feeds them by it."""
        weight = self.linears[group].weight
        fold = group_scale(group, (self.inputs[group], column_absmax(weight)), alpha, self.config)
        scale, columns = fold.scale.to(weight.dtype), fold.columns.to(weight.dtype)
        if group in self.norms:
            self.norms[group] = self.norms[group] / scale
        else:
            self._divide_last_rows("qkv" if group == "o" else "gate_up", scale)
        weight.mul_(columns)
        self.inputs[group] = self.inputs[group] / columns.float()
        self.scales[group] = scale

    def _divide_last_rows(self, group: str, scale: Tensor) -> None:
        """v is what qkv ends with, and up is what gate_up ends with."""
        linear, rows = self.linears[group], len(scale)
        linear.weight[-rows:].div_(scale[:, None])
        if linear.bias is not None:
            linear.bias[-rows:].div_(scale)
        self.outputs[group] = torch.cat([self.outputs[group][:-rows], self.outputs[group][-rows:] / scale.float()])

    def result(self) -> SmoothedLayer:
        weights = LayerWeights(
            attention_norm=self.norms["qkv"],
            qkv=self.linears["qkv"],
            o=self.linears["o"],
            mlp_norm=self.norms["gate_up"],
            gate_up=self.linears["gate_up"],
            down=self.linears["down"],
        )
        inputs = {self.name(group): maxima.cpu() for group, maxima in self.inputs.items()}
        outputs = {self.name(group): maxima.cpu() for group, maxima in self.outputs.items()}
        scales = {group: scale.cpu() for group, scale in self.scales.items()}
        return SmoothedLayer(inputs, outputs, scales, weights)


def _copied(linear: LinearWeight) -> DenseWeight:
    """A copy of a dense layer that may be written to."""
    if not isinstance(linear, DenseWeight):
        raise TypeError(f"only dense weights can be smoothed, not {type(linear).__name__}")
    bias = None if linear.bias is None else _widened(linear.bias)
    return DenseWeight(_widened(linear.weight), bias)


def _widened(tensor: Tensor) -> Tensor:
    """A copy in float32, or in float64 where it is that already."""
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)
