"""Activation ranges without the calibration job: run a model once with taps, and take maxima."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified_layout import linear_names
from workbench.model.config import ModelConfig
from workbench.model.weights import ModelWeights
from workbench.quantization.ranges import BINS, ActivationRanges, RangesSource, bin_edges
from workbench.runtime.session import SessionOptions, TorchSession

INPUT_TAPS = {
    "attention.qkv": "attention_norm",
    "attention.o": "attention.context",
    "mlp.gate_up": "mlp_norm",
    "mlp.down": "mlp.act",
}
SIDES = ("input", "output")


def some_ids(config: ModelConfig, batch: int = 3, length: int = 17) -> Tensor:
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(7))


def taps_of(config: ModelConfig, weights: ModelWeights, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every tap of one forward pass over :func:`some_ids`; ``logits`` is one of them."""
    taps: dict[str, Tensor] = {}
    session = TorchSession(config, weights, SessionOptions(dtype, backend="torch"))
    session.logits(some_ids(config), on_tap=taps.__setitem__)
    return taps


def ranges_from(config: ModelConfig, taps: dict[str, Tensor], fingerprint: str = "none") -> ActivationRanges:
    """The maxima and KV histograms of taps."""
    inputs, outputs = {}, {}
    for linear in linear_names(config):
        prefix = ".".join(linear.split(".")[:2])
        site = linear.split(".", 2)[-1]
        inputs[linear] = _maxima(taps["final_norm" if linear == "lm_head" else f"{prefix}.{INPUT_TAPS[site]}"])
        outputs[linear] = _maxima(taps["logits" if linear == "lm_head" else linear])
    keys = {n: taps[f"layers.{n}.attention.key"] for n in range(config.num_layers)}
    values = {n: taps[f"layers.{n}.attention.value"] for n in range(config.num_layers)}
    return ActivationRanges(
        source=(RangesSource("some ids", "0" * 64, 3, 17, 51, fingerprint, "float32"),),
        inputs=inputs,
        outputs=outputs,
        keys={n: _per_head(key) for n, key in keys.items()},
        values={n: _per_head(value) for n, value in values.items()},
        histograms={f"{name}.{side}": torch.zeros(BINS, dtype=torch.int64) for name in inputs for side in SIDES},
        kv_histograms={f"layers.{n}.key": _histogram(key) for n, key in keys.items()}
        | {f"layers.{n}.value": _histogram(value) for n, value in values.items()},
    )


def ranges_of(model_dir: Path) -> ActivationRanges:
    """Ranges of a Hugging Face folder, in float32."""
    source = HFCheckpoint.open(model_dir)
    return ranges_from(source.config, taps_of(source.config, source.weights(torch.float32)), source.fingerprint())


def _maxima(tap: Tensor) -> Tensor:
    return tap.float().abs().flatten(0, -2).amax(0)


def _per_head(tap: Tensor) -> Tensor:
    """``[batch, kv_heads, seq, head_dim] -> [kv_heads]``."""
    return tap.float().abs().amax((0, 2, 3))


def _histogram(tap: Tensor) -> Tensor:
    heads = tap.transpose(0, 1).flatten(1).abs().double()
    places = (torch.bucketize(heads, bin_edges(), right=True) - 1).clamp(0, BINS - 1)
    return torch.zeros(len(heads), BINS, dtype=torch.int64).scatter_add_(1, places, torch.ones_like(places))
