"""Activation ranges made by hand: maxima and histograms of random numbers, in the shapes of a small model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.quantization.ranges import ActivationRanges, RangesSource, count_bins, magnitude_codes

TOKENS = 40


def make_ranges(
    config: ModelConfig,
    *,
    spoil: Mapping[str, float] | None = None,
    scale: float = 1.0,
    fingerprint: str = "f" * 64,
    windows: int = 128,
) -> ActivationRanges:
    """Ranges of ``TOKENS`` random tokens.

    Args:
        config: the sizes.
        spoil: place (``layers.1.mlp.down.input``) -> by what its channel 3 (or head 0) is larger than the others.
        scale: of every number.
        fingerprint: of the model that they are of.
        windows: how many windows of 512 tokens the source claims.
    """
    tensors = dict(_tensors(config, spoil or {}, scale))
    source = RangesSource("words", "0" * 64, windows, 512, windows * 512, fingerprint, "float32")
    maxima = {place: values.abs().amax(0) for place, values in tensors.items()}
    counts = {place: count_bins(magnitude_codes(values), torch.float32) for place, values in tensors.items()}
    linear = {place: place.rpartition(".") for place in tensors}
    per_head = {place: tensors[place] for place, (_, _, side) in linear.items() if side in ("key", "value")}
    return ActivationRanges(
        (source,),
        inputs={owner: maxima[place] for place, (owner, _, side) in linear.items() if side == "input"},
        outputs={owner: maxima[place] for place, (owner, _, side) in linear.items() if side == "output"},
        keys={int(p.split(".")[1]): maxima[p].amax(1) for p in per_head if p.endswith("key")},
        values={int(p.split(".")[1]): maxima[p].amax(1) for p in per_head if p.endswith("value")},
        histograms={place: counts[place] for place in tensors if place not in per_head},
        kv_histograms={
            place: torch.stack([count_bins(magnitude_codes(head), torch.float32) for head in values.unbind(1)])
            for place, values in per_head.items()
        },
    )


def _tensors(config: ModelConfig, spoil: Mapping[str, float], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Place -> ``[tokens, channels]``, for K and V ``[tokens, kv_heads, head_dim]``."""
    generator = torch.Generator().manual_seed(0)
    queries = config.num_heads * config.head_dim
    layer_widths = {
        "attention.qkv.input": (config.hidden_size,),
        "attention.qkv.output": (queries + 2 * config.num_kv_heads * config.head_dim,),
        "key": (config.num_kv_heads, config.head_dim),
        "value": (config.num_kv_heads, config.head_dim),
        "attention.o.input": (queries,),
        "attention.o.output": (config.hidden_size,),
        "mlp.gate_up.input": (config.hidden_size,),
        "mlp.gate_up.output": (2 * config.intermediate_size,),
        "mlp.down.input": (config.intermediate_size,),
        "mlp.down.output": (config.hidden_size,),
    }
    widths = {f"layers.{n}.{name}": width for n in range(config.num_layers) for name, width in layer_widths.items()}
    widths |= {"lm_head.input": (config.hidden_size,), "lm_head.output": (config.vocab_size,)}
    for place, width in widths.items():
        values = torch.rand(TOKENS, *width, generator=generator) * scale + scale / 4
        one = 0 if place.endswith(("key", "value")) else 3
        values[:, one] *= spoil.get(place, 1.0)
        yield place, values
