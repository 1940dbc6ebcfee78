"""What calibration would have seen of dummy weights: maxima of the right shapes, drawn. No model runs."""

from __future__ import annotations

import torch

from workbench.checkpoint.unified_layout import linear_names, linear_shape, site_of
from workbench.checkpoint.weight_source import WeightSource
from workbench.quantization.ranges import ActivationRanges, RangesSource

# Maxima lie between this and twice this.
PEAK = 4.0


def dummy_ranges(source: WeightSource, seed: int = 0) -> ActivationRanges:
    """Ranges that fit a model; they say nothing about it, and hold no histograms."""
    config, generator = source.config, torch.Generator().manual_seed(seed)

    def maxima(count: int) -> torch.Tensor:
        return PEAK * (1 + torch.rand(count, generator=generator))

    shapes = {linear: linear_shape(config, site_of(linear)) for linear in linear_names(config)}
    return ActivationRanges(
        source=(RangesSource("nothing: dummy weights", "0" * 64, 1, 1, 1, source.fingerprint(), "float32"),),
        inputs={linear: maxima(columns) for linear, (_, columns) in shapes.items()},
        outputs={linear: maxima(rows) for linear, (rows, _) in shapes.items()},
        keys={layer: maxima(config.num_kv_heads) for layer in range(config.num_layers)},
        values={layer: maxima(config.num_kv_heads) for layer in range(config.num_layers)},
    )
