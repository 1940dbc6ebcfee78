"""Dense layers, a recipe and ranges -> the tensors of a unified checkpoint, one whole layer at a time.

For what needs a whole layer at once: smoothing, static scales, scales for a whole projection. Rows of what needs no
more than rows go through :mod:`workbench.quantization.convert`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.cast import WeightWarning, cast, count_not_finite, torch_dtype
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.weight_fields import pack, split_rows
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight, LayerWeights, LinearWeight, ModelWeights, SmoothQuantWeight
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.kv_scales import layer_kv_scales
from workbench.quantization.quantize import LinearFacts, quantize_linear, require_finite, rows_per_chunk
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothed_ranges import SmoothedRanges
from workbench.quantization.smoothquant import smooth_layer
from workbench.recipe import SMOOTHING_GROUPS, Recipe, SmoothQuant


@dataclass(frozen=True)
class Quantization:
    """What a conversion does to the weights.

    Attributes:
        recipe: dtype and quantization of what is written.
        ranges: of the model that is read; None where nothing needs them.
        smoothing: to fold in before; None for none.
    """

    recipe: Recipe
    ranges: ActivationRanges | None = None
    smoothing: SmoothQuant | None = None


class LayerConversion:
    """One run over a model.

    Args:
        config: the model's sizes.
        weights: dense; the embedding, the head and their rows may be views of a mapped file.
        how: what is done to them.
        writer: planned by :func:`workbench.checkpoint.unified_layout.checkpoint_tensors`.
        report: told the bytes that are written.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        how: Quantization,
        writer: SafetensorsWriter,
        report: Reporter,
    ) -> None:
        self.config, self.weights, self.writer, self.report = config, weights, writer, report
        self.recipe, self.smoothing, self.ranges = how.recipe, how.smoothing, how.ranges
        self.dtype = torch_dtype(how.recipe.dtype)
        self.seen = None if how.ranges is None else SmoothedRanges(how.ranges, config, how.smoothing)
        self.total = sum(spec.bytes for spec in layout.checkpoint_tensors(config, how.recipe).values())
        self.done = 0

    def run(self) -> ActivationRanges | None:
        """Write every tensor; returns the ranges of what was written, smoothing included."""
        weights = self.weights
        assert weights.embedding is not None
        assert weights.final_norm is not None
        assert isinstance(weights.lm_head, DenseWeight)
        self._dense(layout.EMBEDDING, weights.embedding)
        for index in range(self.config.num_layers):
            self._layer(index, weights.layers[index])
        self._dense(layout.FINAL_NORM, weights.final_norm)
        if self.recipe.weights_of(layout.LM_HEAD) is None:
            self._dense(f"{layout.LM_HEAD}.weight", weights.lm_head.weight)
        else:
            self._linear(layout.LM_HEAD, weights.lm_head)
        ranges = None if self.seen is None else self.seen.result()
        if ranges is not None:
            self.done += write_kv_scales(self.writer, self.config, self.recipe, ranges)
        self.report(ProgressEvent("convert", self.total, self.total, "B"))
        return ranges

    def _layer(self, index: int, layer: LayerWeights) -> None:
        if self.smoothing is not None:
            assert self.ranges is not None
            assert self.seen is not None
            for group, site in SMOOTHING_GROUPS.items():
                # A scale that is NaN would spread to the layer's norms and to its other matrices.
                require_finite(getattr(layer, group).weight, f"layers.{index}.{site}")
            smoothed = smooth_layer(layer, index, self.config, self.ranges, self.smoothing)
            self.seen.add(index, smoothed)
            layer = smoothed.weights
        prefix = layout.layer_prefix(index)
        self._dense(prefix + layout.ATTENTION_NORM, layer.attention_norm)
        self._dense(prefix + layout.MLP_NORM, layer.mlp_norm)
        for group, site in SMOOTHING_GROUPS.items():
            linear = getattr(layer, group)
            assert isinstance(linear, DenseWeight)
            self._linear(f"layers.{index}.{site}", linear)

    def _linear(self, linear: str, weight: DenseWeight) -> None:
        absmax = None if self.seen is None else self.seen.inputs.get(linear)
        facts = LinearFacts(linear, absmax, projection_rows(self.config, layout.site_of(linear)))
        quantized = quantize_linear(weight, self.recipe.weights_of(linear), self.dtype, facts)
        strange = count_not_finite(weight.weight)
        warn_not_finite(linear, strange if weight.bias is None else strange + count_not_finite(weight.bias))
        self._write_linear(linear, quantized)

    def _write_linear(self, linear: str, weight: LinearWeight) -> None:
        prefixes, site = layout.stored_prefixes(linear), layout.site_of(linear)
        outputs = None if self.seen is None else self.seen.outputs.get(linear)
        parts = [None] * len(prefixes) if outputs is None else outputs.chunk(len(prefixes))
        for prefix, rows, seen in zip(prefixes, split_rows(weight, len(prefixes)), parts, strict=True):
            for suffix, tensor in pack(rows, seen, smoother=site in layout.WITH_SMOOTHER).items():
                self._write(f"{prefix}.{suffix}", tensor)
        static = isinstance(weight, SmoothQuantWeight) and weight.input_scale is not None
        if static and site in layout.INPUT_FACTORS:
            assert isinstance(weight, SmoothQuantWeight)
            assert weight.input_scale is not None
            name = layout.layer_prefix(int(linear.split(".")[1])) + layout.INPUT_FACTORS[site]
            self._write(name, weight.input_scale.reciprocal().reshape(1))

    def _dense(self, name: str, tensor: Tensor) -> None:
        """A tensor that only changes its type, a few rows at a time."""
        warn_not_finite(name, count_not_finite(tensor))
        step = rows_per_chunk(tensor.shape[1]) if tensor.dim() > 1 else len(tensor)
        for rows in torch.split(tensor, step):
            self.writer.write_rows(name, cast(rows, self.dtype, name))
            self._count(rows.numel() * self.dtype.itemsize)

    def _write(self, name: str, tensor: Tensor) -> None:
        self.writer.write(name, tensor)
        self._count(tensor.nbytes)

    def _count(self, nbytes: int) -> None:
        self.done += nbytes
        self.report(ProgressEvent("convert", self.done, self.total, "B"))


def write_kv_scales(writer: SafetensorsWriter, config: ModelConfig, recipe: Recipe, ranges: ActivationRanges) -> int:
    """Write the scales of an INT8 KV cache, if the recipe has one, from the ranges of what is written.

    Returns:
        The bytes written.

    Raises:
        CheckpointError: the ranges do not have what the scales need.
    """
    written = 0
    if recipe.kv_cache is not None:
        for index in range(config.num_layers):
            scales = layer_kv_scales(ranges, index, config, recipe.kv_cache)
            for name, tensor in layout.pack_kv_scales(scales).items():
                writer.write(layout.layer_prefix(index) + name, tensor)
                written += tensor.nbytes
    return written


def projection_rows(config: ModelConfig, site: str) -> Sequence[int]:
    """Rows of each projection that a linear layer stacks; one that stacks nothing is a single one."""
    if site == "attention.qkv":
        return [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    if site == "mlp.gate_up":
        return [config.intermediate_size] * 2
    return [layout.linear_shape(config, site)[0]]


def warn_not_finite(name: str, count: int) -> None:
    """Warn of ``count`` values of a tensor that are no numbers; silent at 0."""
    if count:
        warnings.warn(f"{name} holds {count} values that are NaN or infinite", WeightWarning, stacklevel=3)
