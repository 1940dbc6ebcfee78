"""Counts what passes through a model's taps: maxima and histograms. Runs nothing, reads no weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.config import ModelConfig
from workbench.model.taps import layer_tap, split_tap
from workbench.quantization.layer_walk import Seen
from workbench.quantization.ranges import (
    BINS,
    ActivationRanges,
    RangesSource,
    count_bins,
    magnitude_codes,
    magnitudes,
)

# A tap -> the linear layer whose input or output it is.
INPUT_TAPS = {
    "attention_norm": "attention.qkv",
    "attention.context": "attention.o",
    "mlp_norm": "mlp.gate_up",
    "mlp.act": "mlp.down",
    "final_norm": "lm_head",
}
OUTPUT_TAPS = {**{site: site for site in INPUT_TAPS.values()}, "logits": "lm_head"}
KV_TAPS = {"attention.key": "key", "attention.value": "value"}


def input_linear(tap: str) -> str | None:
    """The linear layer that reads a tap (``layers.3.mlp.act`` -> ``layers.3.mlp.down``), if one does."""
    return _linear(tap, INPUT_TAPS)


def linear_widths(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Every linear layer with its input and output features."""
    heads = config.num_heads * config.head_dim
    sites = {
        "attention.qkv": (config.hidden_size, config.qkv_features),
        "attention.o": (heads, config.hidden_size),
        "mlp.gate_up": (config.hidden_size, 2 * config.intermediate_size),
        "mlp.down": (config.intermediate_size, config.hidden_size),
    }
    layers = {layer_tap(index, site): widths for index in range(config.num_layers) for site, widths in sites.items()}
    return {**layers, "lm_head": (config.hidden_size, config.vocab_size)}


class RangeCounter:
    """Maxima and histograms that grow with every tensor seen.

    Args:
        config: the model's sizes.
        dtype: of activations.
        seen_before: ranges to go on from.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, seen_before: ActivationRanges | None = None) -> None:
        self.dtype = dtype
        widths, layers, kv_heads = linear_widths(config), range(config.num_layers), config.num_kv_heads
        held = seen_before or ActivationRanges(
            source=(),
            inputs={name: torch.zeros(width) for name, (width, _) in widths.items()},
            outputs={name: torch.zeros(width) for name, (_, width) in widths.items()},
            keys={layer: torch.zeros(kv_heads) for layer in layers},
            values={layer: torch.zeros(kv_heads) for layer in layers},
            histograms={f"{name}.{side}": _no_counts() for name in widths for side in ("input", "output")},
            kv_histograms={f"layers.{n}.{part}": _no_counts(kv_heads) for n in layers for part in KV_TAPS.values()},
        )
        self.held = held
        self._pool = ThreadPoolExecutor(torch.get_num_threads())

    def ranges(self, source: RangesSource) -> ActivationRanges:
        """What was seen so far."""
        held = self.held
        return ActivationRanges(
            (source,), held.inputs, held.outputs, held.keys, held.values, held.histograms, held.kv_histograms
        )

    def watch(self, seen: Seen) -> None:
        """Take in one tapped tensor; taps that are nobody's input or output are passed over.

        Raises:
            CheckpointError: it holds NaN or infinite values.
        """
        layer, site = split_tap(seen.tap)
        if site in KV_TAPS:
            self._heads(seen, 0 if layer is None else layer, KV_TAPS[site])
        if (linear := _linear(seen.tap, INPUT_TAPS)) is not None:
            self._channels(seen, self.held.inputs[linear], self.held.histograms[f"{linear}.input"])
        if (linear := _linear(seen.tap, OUTPUT_TAPS)) is not None:
            self._channels(seen, self.held.outputs[linear], self.held.histograms[f"{linear}.output"])

    def _channels(self, seen: Seen, maxima: Tensor, counts: Tensor) -> None:
        # Logits are float32 with values of the dtype: the narrow form is the same and cheaper to count.
        codes = magnitude_codes(seen.value.to(self.dtype)).flatten(0, -2)
        found = self._finite(magnitudes(codes.amax(0), self.dtype), seen.tap)
        place = maxima[seen.first_feature : seen.first_feature + len(found)]
        torch.maximum(place, found, out=place)
        counts += self._count(codes)

    def _heads(self, seen: Seen, layer: int, part: str) -> None:
        codes = magnitude_codes(seen.value.contiguous()).transpose(0, 1).contiguous().flatten(1)
        found = self._finite(magnitudes(codes.amax(1), self.dtype), seen.tap)
        maxima = (self.held.keys if part == "key" else self.held.values)[layer]
        torch.maximum(maxima, found, out=maxima)
        counts = self.held.kv_histograms[f"layers.{layer}.{part}"]
        for head in range(len(codes)):
            counts[head] += self._count(codes[head])

    def _count(self, codes: Tensor) -> Tensor:
        """Counts of all codes; bincount has one thread, so every thread gets a share of them."""
        shares = codes.flatten().chunk(torch.get_num_threads() if codes.device.type == "cpu" else 1)
        return torch.stack(list(self._pool.map(lambda share: count_bins(share, self.dtype), shares))).sum(0).cpu()

    def _finite(self, maxima: Tensor, tap: str) -> Tensor:
        maxima = maxima.cpu()
        if not torch.isfinite(maxima).all():
            layer, _ = split_tap(tap)
            place = f"tap {tap}" if layer is None else f"layer {layer}, tap {tap}"
            raise CheckpointError(
                f"calibration found NaN or infinite activations in {place}",
                fix="calibrate in float32 or bfloat16, or check the model's weights",
            )
        return maxima


def _linear(tap: str, sites: dict[str, str]) -> str | None:
    layer, site = split_tap(tap)
    linear = sites.get(site)
    return linear if linear is None or layer is None else layer_tap(layer, linear)


def _no_counts(*heads: int) -> Tensor:
    return torch.zeros(*heads, BINS, dtype=torch.int64)
