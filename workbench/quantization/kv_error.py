"""What an INT8 KV cache costs the output of attention, layer by layer, on kept queries, keys and values.

Attention is the oracle's, once with the scales that a conversion would store and once without. It runs in float32, so
that the error holds nothing but the integers' cost. It is the error of one layer alone: how layers add up, the KL of
the whole model says (:mod:`workbench.evaluation.tradeoff`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.backends.torch_ops import TorchOps, per_head
from workbench.errors import RecipeError
from workbench.model.config import ModelConfig
from workbench.model.numerics import INT8_LIMIT
from workbench.model.ops import AttentionSpec, LayerCache, Step
from workbench.model.rotary import RotaryTables, rotary_tables
from workbench.model.weights import KVScales
from workbench.quantization.attention_inputs import AttentionInputs, collect_attention_inputs
from workbench.quantization.byte_cache import ByteCache
from workbench.quantization.kv_scales import layer_kv_scales
from workbench.quantization.layer_walk import check_device
from workbench.quantization.observed import kv_absmax, output_absmax
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothed_ranges import SmoothedRanges
from workbench.quantization.smoothquant import SmoothedMaxima
from workbench.recipe import Int8KVCache

__all__ = ["KVCurve", "KVError", "KVStudy", "collect_attention_inputs"]

DEFAULT_PERCENTILES = (98.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
_CACHE_BYTES = 1 << 29


@dataclass(frozen=True)
class KVError:
    """One layer whose keys and values are stored as INT8.

    Attributes:
        layer: which one.
        relative_l2: distance of attention's output from that with an exact cache, over all tokens and heads.
        by_head: ``[kv_heads]`` float64 on the CPU, the same for the query heads that read each KV head.
        key_scale, value_scale: float32 on the CPU, ``[kv_heads]`` or ``[]``.
        key_clipped, value_clipped: share of the magnitudes, 0 to 1, that lie beyond the largest integer.
    """

    layer: int
    relative_l2: float
    by_head: Tensor
    key_scale: Tensor
    value_scale: Tensor
    key_clipped: float
    value_clipped: float

    @property
    def key_limit(self) -> Tensor:
        """The largest magnitude that an integer stands for, in the shape of ``key_scale``."""
        return self.key_scale * INT8_LIMIT

    @property
    def value_limit(self) -> Tensor:
        """As :attr:`key_limit`, of the values (divided by what smoothing divides them by)."""
        return self.value_scale * INT8_LIMIT


@dataclass(frozen=True)
class KVCurve:
    """One layer's errors by the percentile of the calibrated magnitudes that the scales cover.

    Attributes:
        layer, granularity: what was tried.
        percentiles: ascending.
        errors: one for each.
    """

    layer: int
    granularity: str
    percentiles: tuple[float, ...]
    errors: tuple[KVError, ...]

    @property
    def best(self) -> tuple[float, float]:
        """The percentile of the least ``relative_l2``, and that; of equals the one that clips least."""
        error, percentile = min((e.relative_l2, -p) for e, p in zip(self.errors, self.percentiles, strict=True))
        return -percentile, error


@dataclass(frozen=True)
class _Exact:
    """One layer with an exact cache: ``[windows, length, features]`` before and after attention, float32."""

    qkv: Tensor
    context: Tensor

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.context.nbytes


class KVStudy:
    """Errors of an INT8 KV cache at any granularity and percentile.

    Args:
        config: the model's sizes.
        file: what :func:`collect_attention_inputs` wrote, or its folder; of other text than the ranges.
        ranges: of the same model, not smoothed.
        device: "cpu" or a CUDA device.

    Raises:
        CheckpointError: the file is missing or of another model than the ranges.
        BackendError: no such device.
    """

    def __init__(self, config: ModelConfig, file: str | Path, ranges: ActivationRanges, device: str = "cpu") -> None:
        check_device(device)
        self.config, self.ranges, self.device = config, ranges, torch.device(device)
        self.inputs = AttentionInputs(file)
        for source in ranges.source:
            self.inputs.require_model(source.model_fingerprint)
        self._exact = ByteCache(_CACHE_BYTES, self._read, lambda held: held.nbytes)
        self._rotary: RotaryTables | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Windows that are judged on, and the tokens in each."""
        return self.inputs.shape

    def error(self, layer: int, how: Int8KVCache, value_divisor: Tensor | None = None) -> KVError:
        """One layer's error.

        Args:
            layer: from 0.
            how: granularity and percentile.
            value_divisor: ``[kv_heads * head_dim]``, what smoothing o divides the values by
                (:meth:`workbench.quantization.alpha_search.AlphaSearch.scale`); None where o is not smoothed.

        Raises:
            RecipeError: no such layer.
            CheckpointError: ranges that lack the layer, do not fit the model, or lack a percentile's histogram.
        """
        exact = self._exact(layer)
        scales = layer_kv_scales(self.ranges_of(layer, value_divisor), layer, self.config, how)
        with torch.inference_mode():
            qkv, columns = exact.qkv, None
            if value_divisor is not None:
                divisor = value_divisor.to(self.device, torch.float32)
                qkv = torch.cat([qkv[..., : -len(divisor)], qkv[..., -len(divisor) :] / divisor], -1)
                columns = self._by_query_head(divisor)
            context, clipped = self._attention(layer, qkv, scales)
            by_head, whole = self._errors(context if columns is None else context * columns, exact.context)
        return KVError(layer, whole, by_head, scales.key, scales.value, clipped["key"], clipped["value"])

    def curve(
        self,
        layer: int,
        granularity: str,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        value_divisor: Tensor | None = None,
    ) -> KVCurve:
        """One layer at every percentile.

        Raises:
            RecipeError: no such layer, granularity or percentile, or no percentile at all.
            CheckpointError: as :meth:`error`.
        """
        if not percentiles:
            raise RecipeError("no percentile to try", allowed="one or more from 50 to 100")
        tried = tuple(sorted(set(percentiles)))
        hows = [Int8KVCache(granularity, percentile) for percentile in tried]
        return KVCurve(layer, granularity, tried, tuple(self.error(layer, how, value_divisor) for how in hows))

    def ranges_of(self, layer: int, value_divisor: Tensor | None = None) -> ActivationRanges:
        """Ranges that hold the layer's keys and values as they are stored: values divided as smoothing divides them.

        Args:
            layer: from 0.
            value_divisor: as in :meth:`error`.

        Raises:
            CheckpointError: the ranges lack the layer, or do not fit the model.
        """
        heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        if value_divisor is None:
            return self.ranges
        one = ActivationRanges(
            self.ranges.source,
            inputs={},
            outputs={},
            keys={layer: kv_absmax(self.ranges, (layer, "key"), heads, 100.0)},
            values={layer: kv_absmax(self.ranges, (layer, "value"), heads, 100.0)},
            kv_histograms={
                name: self.ranges.kv_histograms[name]
                for name in (f"layers.{layer}.key", f"layers.{layer}.value")
                if name in self.ranges.kv_histograms
            },
        )
        linear = f"layers.{layer}.attention.qkv"
        outputs = output_absmax(self.ranges, linear, self.config.qkv_features).clone()
        outputs[-heads * head_dim :] /= value_divisor.float()
        smoothed = SmoothedRanges(one, self.config, None)
        smoothed.add(layer, SmoothedMaxima({}, {linear: outputs}, {"o": value_divisor}))
        return smoothed.result()

    def _read(self, layer: int) -> _Exact:
        with torch.inference_mode():
            qkv = self.inputs(layer).to(self.device, torch.float32)
            context, _ = self._attention(layer, qkv, None)
        return _Exact(qkv, context)

    def _attention(self, layer: int, qkv: Tensor, scales: KVScales | None) -> tuple[Tensor, dict[str, float]]:
        """Attention's output, and with scales the shares of keys and of values that they clip."""
        windows, length, _ = qkv.shape
        on_device = None if scales is None else KVScales(scales.key.to(self.device), scales.value.to(self.device))
        taps: dict[str, Tensor] = {}
        ops = TorchOps(torch.float32, on_tap=taps.__setitem__)
        name = f"layers.{layer}.attention"
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        spec = AttentionSpec(name, heads, kv_heads, head_dim, self._tables(length), on_device)
        stored = torch.float32 if scales is None else torch.int8
        empty = torch.zeros(windows, kv_heads, length, head_dim, dtype=stored, device=self.device)
        positions = torch.arange(length, device=self.device).expand(windows, -1)
        start = torch.zeros(windows, dtype=torch.int32, device=self.device)
        context, _ = ops.attention(qkv, Step(positions, positions, start), LayerCache(empty, empty), spec)
        if on_device is None:
            return context, {}
        parts = {"key": on_device.key, "value": on_device.value}
        return context, {part: _clipped(taps[f"{name}.{part}"], scale) for part, scale in parts.items()}

    def _tables(self, length: int) -> RotaryTables:
        if self._rotary is None:
            tables = rotary_tables(self.config, length)
            self._rotary = RotaryTables(tables.cos.to(self.device), tables.sin.to(self.device))
        return self._rotary

    def _by_query_head(self, divisor: Tensor) -> Tensor:
        """``[kv_heads * head_dim] -> [heads * head_dim]``."""
        heads = divisor.view(self.config.num_kv_heads, -1)
        return heads.repeat_interleave(self.config.num_heads // self.config.num_kv_heads, 0).flatten()

    def _errors(self, found: Tensor, exact: Tensor) -> tuple[Tensor, float]:
        """``[kv_heads]`` float64 and the whole; summed in float64."""
        far, whole = (self._squares(each) for each in (found - exact, exact))
        least = torch.finfo(torch.float64).tiny
        return (far / whole.clamp_min(least)).sqrt().cpu(), float((far.sum() / whole.sum().clamp_min(least)).sqrt())

    def _squares(self, context: Tensor) -> Tensor:
        """``[windows, length, heads * head_dim] -> [kv_heads]`` float64: sums of squares."""
        heads = context.view(*context.shape[:-1], self.config.num_kv_heads, -1)
        norms: Tensor = torch.linalg.vector_norm(heads, dim=(0, 1, 3), dtype=torch.float64)
        return norms.square()


def _clipped(x: Tensor, scale: Tensor) -> float:
    """The share of ``[windows, kv_heads, length, head_dim]`` that rounds to more than the largest integer."""
    return float((x.abs() > (INT8_LIMIT + 0.5) * per_head(scale)).double().mean())
