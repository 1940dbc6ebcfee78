"""What smoothing makes of a model's ranges, kept layer by layer: a moved slider folds one layer anew, not all."""

from __future__ import annotations

import threading

import torch

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.model.weights import on_device
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothed_ranges import SmoothedRanges
from workbench.quantization.smoothquant import SmoothedMaxima, smooth_layer
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant

_Alphas = tuple[float | None, ...]


class SmoothedView:
    """The ranges of a model under a smoothing, for showing them.

    Args:
        source: the model.
        device: where weights are folded: "cpu" or a CUDA device.
    """

    def __init__(self, source: HFCheckpoint, device: str) -> None:
        self._source, self._device = source, device
        self._folding = threading.Lock()
        self._layers: dict[int, tuple[_Alphas, SmoothedMaxima]] = {}
        self._of: ActivationRanges | None = None

    def ranges(self, ranges: ActivationRanges, how: SmoothQuant | None, report: Reporter = silent) -> ActivationRanges:
        """The ranges after smoothing; as they are where there is none. Reads the weights of changed layers only.

        Raises:
            CheckpointError: the ranges do not fit the model.
        """
        if how is None or not how.groups:
            return ranges
        with self._folding:
            if self._of is not ranges:
                self._layers, self._of = {}, ranges
            collected = SmoothedRanges(ranges, self._source.config, how)
            layers = self._source.config.num_layers
            for index in range(layers):
                collected.add(index, self._layer(index, ranges, how))
                report(ProgressEvent("smooth", index + 1, layers, "layers"))
            return collected.result()

    def _layer(self, index: int, ranges: ActivationRanges, how: SmoothQuant) -> SmoothedMaxima:
        alphas = tuple(how.alpha_of(index, group) for group in SMOOTHING_GROUPS)
        known = self._layers.get(index)
        if known is None or known[0] != alphas:
            weights = on_device(self._source.layers(torch.float32)[index], torch.device(self._device))
            smoothed = smooth_layer(weights, index, self._source.config, ranges, how)
            known = self._layers[index] = (alphas, smoothed.maxima())
        return known[1]
