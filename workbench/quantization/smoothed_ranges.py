"""The ranges of a model -> those of the same model after smoothing, without running it again.

Maxima are exact, as each channel is divided by one number. A histogram over many channels cannot be divided so: those
of smoothed activations are left out, and that of a head's values is moved by what its maximum moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.quantization.ranges import BINS, ActivationRanges, bin_edges
from workbench.quantization.smoothquant import SmoothedMaxima
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant


class SmoothedRanges:
    """Collects what smoothing does to the activations, layer by layer.

    Args:
        ranges: of the model as it was.
        config: its sizes.
        how: the smoothing; None leaves the ranges as they are.
    """

    def __init__(self, ranges: ActivationRanges, config: ModelConfig, how: SmoothQuant | None) -> None:
        self.config, self.how, self.source = config, how, ranges.source
        self.inputs, self.outputs = dict(ranges.inputs), dict(ranges.outputs)
        self.values = dict(ranges.values)
        self.histograms, self.kv_histograms = dict(ranges.histograms), dict(ranges.kv_histograms)
        self.keys: Mapping[int, Tensor] = ranges.keys

    def add(self, index: int, layer: SmoothedMaxima) -> None:
        """Take the maxima of one smoothed layer."""
        self.inputs.update(layer.inputs)
        self.outputs.update(layer.outputs)
        for group in layer.scales:
            self.histograms.pop(f"layers.{index}.{SMOOTHING_GROUPS[group]}.input", None)
        if "down" in layer.scales:
            self.histograms.pop(f"layers.{index}.mlp.gate_up.output", None)
        if "o" in layer.scales:
            self.histograms.pop(f"layers.{index}.attention.qkv.output", None)
            self._add_values(index, layer.outputs[f"layers.{index}.attention.qkv"])

    def _add_values(self, index: int, outputs: Tensor) -> None:
        heads = self.config.num_kv_heads
        maxima = outputs[-heads * self.config.head_dim :].view(heads, -1).amax(1)
        name = f"layers.{index}.value"
        if name in self.kv_histograms:
            before = self.values[index]
            ratio = torch.where(before > 0, maxima / before, torch.ones_like(before))
            self.kv_histograms[name] = scaled_histogram(self.kv_histograms[name], ratio)
        self.values[index] = maxima

    def result(self) -> ActivationRanges:
        """The ranges of the smoothed model; no other model takes them."""
        sources = tuple(
            replace(source, model_fingerprint=smoothed_fingerprint(source.model_fingerprint, self.how))
            for source in self.source
        )
        return ActivationRanges(
            sources, self.inputs, self.outputs, self.keys, self.values, self.histograms, self.kv_histograms
        )


def smoothed_fingerprint(fingerprint: str, how: SmoothQuant | None) -> str:
    """SHA-256 text of a model with a smoothing folded in; the model's own where there is none."""
    if how is None or not how.groups:
        return fingerprint
    choice = [fingerprint, how.alpha, sorted(how.groups), sorted(how.alpha_by_group.items())]
    return hashlib.sha256(json.dumps(choice).encode()).hexdigest()


def scaled_histogram(counts: Tensor, ratio: Tensor) -> Tensor:
    """The histogram of magnitudes that were all multiplied by one ratio, to the nearest bin.

    Args:
        counts: ``[heads, BINS]`` int64.
        ratio: ``[heads]`` float32, above 0.
    """
    edges = bin_edges()
    centres = (edges[:-1] + edges[1:]) / 2
    places = (torch.bucketize(centres * ratio.double()[:, None], edges, right=True) - 1).clamp(0, BINS - 1)
    return torch.zeros_like(counts).scatter_add_(1, places, counts)
