"""Activation ranges: what calibration saw of one model, in a file. Data, never choices; runs no model.

Histograms count magnitudes in bins that are the leading bits of a float32: ``STEPS_PER_OCTAVE`` steps for each power of
two, so that a bin is at most 1.6 % wide. What is smaller than 2**LOWEST_EXPONENT counts in the first bin, what is
larger than the last one in the last.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from workbench.checkpoint.safetensors_layout import LENGTH_BYTES, TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.unified_config import RANGES_FILE as RANGES_FILE
from workbench.errors import CheckpointError, RecipeError, nearest

STEPS_PER_OCTAVE = 64
LOWEST_EXPONENT, HIGHEST_EXPONENT = -24, 24
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) * STEPS_PER_OCTAVE
PERCENTILES = (99.0, 99.9, 99.99)

_FORMAT = {"kind": "activation ranges", "version": "1", "bins": f"{LOWEST_EXPONENT} {BINS} {STEPS_PER_OCTAVE}"}
_KV_PARTS = ("key", "value")
K = TypeVar("K", str, int)


@dataclass(frozen=True)
class RangesSource:
    """One calibration run.

    Attributes:
        dataset: what the text was, in words.
        text_sha256: of the text itself.
        windows, length, tokens: how many windows, tokens in each, and their product.
        model_fingerprint: which model it was (:meth:`workbench.checkpoint.huggingface.HFCheckpoint.fingerprint`).
        dtype: of the activations.
    """

    dataset: str
    text_sha256: str
    windows: int
    length: int
    tokens: int
    model_fingerprint: str
    dtype: str


@dataclass(frozen=True, eq=False, repr=False)
class ActivationRanges:
    """Absolute maxima and histograms of magnitudes, over every token that calibration saw.

    Attributes:
        source: the runs that were merged.
        inputs: linear layer (``layers.3.mlp.down``, ``lm_head``) -> ``[in]`` float32, maxima per input channel.
        outputs: linear layer -> ``[out]`` float32, maxima per output channel, the bias included.
        keys, values: layer -> ``[kv_heads]`` float32, maxima per head; keys after RoPE.
        histograms: ``LINEAR.input`` and ``LINEAR.output`` -> ``[BINS]`` int64; may lack some or all.
        kv_histograms: ``layers.3.key`` and ``layers.3.value`` -> ``[kv_heads, BINS]`` int64; may lack some or all.

    Raises:
        CheckpointError: a maximum is NaN or infinite.
    """

    source: tuple[RangesSource, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    kv_histograms: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in ("inputs", "outputs", "keys", "values"):
            for name, maxima in getattr(self, place).items():
                if not torch.isfinite(maxima).all():
                    raise CheckpointError(
                        f"the ranges of {place} {name} hold NaN or infinite values", fix="calibrate again"
                    )

    def __repr__(self) -> str:
        seen = ", ".join(f"{source.dataset} {source.windows} x {source.length} tokens" for source in self.source)
        return f"ActivationRanges({seen}; {len(self.inputs)} linear layers, {len(self.keys)} layers of keys and values)"

    def input_absmax(self, linear: str) -> Tensor:
        """Maxima of a linear layer's input per channel, ``[in]`` float32.

        Raises:
            CheckpointError: the ranges hold no such layer.
        """
        return _entry(self.inputs, linear, "linear layer")

    def output_absmax(self, linear: str) -> Tensor:
        """Maxima of a linear layer's output per channel, ``[out]`` float32.

        Raises:
            CheckpointError: as :meth:`input_absmax`.
        """
        return _entry(self.outputs, linear, "linear layer")

    def percentile(self, name: str, percent: float) -> float:
        """The magnitude that ``percent`` of all values of a place do not exceed.

        At most one bin (1.6 %) from the exact percentile of what was counted; 100 gives the exact maximum.

        Args:
            name: ``LINEAR.input``, ``LINEAR.output``, ``layers.N.key`` or ``layers.N.value``.
            percent: more than 0, to 100.

        Raises:
            RecipeError: ``percent`` is out of range.
            CheckpointError: the ranges hold no histogram of that name.
        """
        _check_percent(percent)
        if percent == 100.0:
            return float(self._maxima(name).max())
        histogram = _entry({**self.histograms, **self.kv_histograms}, name, "histogram")
        counts = histogram.reshape(-1, BINS).sum(0)
        return min(float(percentiles(counts, percent)), float(self._maxima(name).max()))

    def kv_absmax(self, layer: int, part: str, percent: float = 100.0) -> Tensor:
        """What an INT8 KV cache's scales must cover, ``[kv_heads]`` float32.

        Args:
            layer: index of the decoder layer.
            part: "key" (after RoPE) or "value".
            percent: of each head's magnitudes; 100 gives the exact maxima, less is accurate to 1.6 %.

        Raises:
            RecipeError: ``percent`` is out of range.
            CheckpointError: no such layer, or no histogram of it and ``percent`` is not 100.
        """
        _check_percent(percent)
        if part not in _KV_PARTS:
            raise CheckpointError(f"the KV cache has no part {part!r}", allowed=", ".join(_KV_PARTS))
        maxima = _entry(self.keys if part == "key" else self.values, layer, "layer")
        if percent == 100.0:
            return maxima
        histogram = _entry(self.kv_histograms, f"layers.{layer}.{part}", "histogram")
        return torch.minimum(percentiles(histogram, percent), maxima)

    def _maxima(self, name: str) -> Tensor:
        """The exact maxima of the place that a histogram's name states."""
        linear, _, side = name.rpartition(".")
        if side in _KV_PARTS:
            layer = linear.removeprefix("layers.")
            return _entry({str(n): t for n, t in (self.keys if side == "key" else self.values).items()}, layer, "layer")
        return _entry(self.inputs if side == "input" else self.outputs, linear, "linear layer")

    def __or__(self, other: ActivationRanges) -> ActivationRanges:
        """Both together: the larger maxima, the sum of histograms that both have.

        Raises:
            CheckpointError: they are of different models.
        """
        for source in other.source:
            self.require_model(source.model_fingerprint)
        return ActivationRanges(
            self.source + other.source,
            inputs=_joined(self.inputs, other.inputs, torch.maximum),
            outputs=_joined(self.outputs, other.outputs, torch.maximum),
            keys=_joined(self.keys, other.keys, torch.maximum),
            values=_joined(self.values, other.values, torch.maximum),
            histograms=_joined(self.histograms, other.histograms, torch.add),
            kv_histograms=_joined(self.kv_histograms, other.kv_histograms, torch.add),
        )

    def require_model(self, fingerprint: str) -> None:
        """Refuse ranges of another model than the one with this fingerprint.

        Raises:
            CheckpointError: they are.
        """
        for source in self.source:
            if source.model_fingerprint != fingerprint:
                raise CheckpointError(
                    f"the ranges are of model {source.model_fingerprint[:12]}",
                    allowed=f"ranges of model {fingerprint[:12]}",
                    fix="calibrate this model with workbench calibrate",
                )

    def save(self, path: str | Path, extra: Mapping[str, str] | None = None) -> None:
        """Write one safetensors file, whole or not at all; ``extra`` texts join its header.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        tensors = self.tensors()
        metadata = {**_FORMAT, "source": json.dumps([dataclasses.asdict(s) for s in self.source]), **(extra or {})}
        specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        partial = path.with_name(path.name + ".partial")
        with SafetensorsWriter(partial, specs, metadata) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        os.replace(partial, path)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file: ``inputs/LINEAR``, ``keys/N``, ``histograms/LINEAR.input`` ..."""
        return {f"{place}/{name}": tensor for place in _PLACES for name, tensor in getattr(self, place).items()}

    @classmethod
    def load(cls, path: str | Path) -> ActivationRanges:
        """Read what :meth:`save` wrote; the folder of a calibration stands for the ranges in it.

        Raises:
            CheckpointError: the file is missing, or is no file of ranges.
        """
        file = _open(path)
        places: dict[str, dict[Any, Tensor]] = {place: {} for place in _PLACES}
        for full in file.places:
            place, _, name = full.partition("/")
            places[place][int(name) if place in ("keys", "values") else name] = file.tensor(full).clone()
        return cls(_sources(file), **places)

    @staticmethod
    def read_source(path: str | Path) -> tuple[RangesSource, ...]:
        """The runs that a file of ranges came from; reads nothing else of it.

        Raises:
            CheckpointError: as :meth:`load`.
        """
        return _sources(_open(path))


_PLACES = ("inputs", "outputs", "keys", "values", "histograms", "kv_histograms")


def _open(path: str | Path) -> SafetensorsFile:
    """A file of ranges, or the one in a calibration's folder."""
    path = Path(path)
    path = path / RANGES_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", fix="make it with workbench calibrate")
    file = SafetensorsFile(path)
    metadata = read_metadata(file)
    if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
        raise CheckpointError(
            f"{path} is no file of activation ranges of version {_FORMAT['version']}",
            fix="make one with workbench calibrate",
        )
    return file


def _sources(file: SafetensorsFile) -> tuple[RangesSource, ...]:
    return tuple(RangesSource(**source) for source in json.loads(read_metadata(file)["source"]))


def read_metadata(file: SafetensorsFile) -> dict[str, str]:
    """The texts of a safetensors file's header."""
    texts: dict[str, str] = json.loads(file.head[LENGTH_BYTES:]).get("__metadata__", {})
    return texts


def bin_edges() -> Tensor:
    """Where the bins begin and the last one ends, ``[BINS + 1]`` float64; the first begins at 0."""
    places = torch.arange(BINS + 1, dtype=torch.float64)
    octave = torch.floor(places / STEPS_PER_OCTAVE)
    edges = torch.exp2(octave + LOWEST_EXPONENT) * (1 + places / STEPS_PER_OCTAVE - octave)
    edges[0] = 0.0
    return edges


def magnitude_codes(x: Tensor) -> Tensor:
    """The bits of ``|x|`` as integers of the same width: they sort as the magnitudes do, NaN above infinity.

    Args:
        x: float32, float16 or bfloat16.
    """
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    return x.view(integer) & torch.iinfo(integer).max


def magnitudes(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """What :func:`magnitude_codes` encoded in ``dtype``, as float32."""
    return codes.view(dtype).float()


def count_bins(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """How many magnitudes fall into each bin, ``[BINS]`` int64.

    Args:
        codes: of finite values, by :func:`magnitude_codes`; any shape.
        dtype: whose codes they are.
    """
    # Half types are counted code by code; float32 by its leading 15 bits, which hold all that a bin tells apart.
    shift = 16 if dtype == torch.float32 else 0
    counts = torch.bincount((codes >> shift).flatten() if shift else codes.flatten(), minlength=1 << 15)
    return torch.zeros(BINS, dtype=torch.int64, device=codes.device).index_add_(
        0, _bin_of_codes(dtype, codes.device), counts
    )


@cache
def _bin_of_codes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The bin of every counted code, ``[2**15]`` int64; codes of infinities and NaN go where the largest values go."""
    codes = torch.arange(1 << 15, dtype=torch.int32)
    values = (codes << 16).view(torch.float32) if dtype == torch.float32 else codes.to(torch.int16).view(dtype).float()
    leading = values.view(torch.int32) >> (23 - STEPS_PER_OCTAVE.bit_length() + 1)
    lowest = (127 + LOWEST_EXPONENT) * STEPS_PER_OCTAVE
    return (leading - lowest).clamp_(0, BINS - 1).long().to(device)


def percentiles(counts: Tensor, percent: float) -> Tensor:
    """The magnitude below which ``percent`` of the counted values lie, interpolated within its bin.

    Args:
        counts: ``[..., BINS]`` int64.
        percent: more than 0, less than 100.

    Returns:
        ``[...]`` float32; 0 where nothing was counted.
    """
    edges = bin_edges()
    reached = counts.cumsum(-1).double()
    # A rank that is a whole number must not become a little more, and so the next value's, by rounding.
    rank = reached[..., -1:] * (percent / 100) * (1 - 1e-12)
    found = torch.searchsorted(reached, rank).clamp_(max=BINS - 1)
    below = reached.gather(-1, found) - counts.gather(-1, found)
    share = (rank - below) / counts.gather(-1, found).clamp_min(1)
    low, high = edges[found], edges[found + 1]
    # Logarithmic within a bin; the first one holds zeros too and has no logarithm at its lower edge.
    inside = torch.where(low > 0, low.clamp_min(1e-300) * (high / low.clamp_min(1e-300)) ** share, high * share)
    return torch.where(reached[..., -1:] > 0, inside, 0.0)[..., 0].float()


def _joined(left: Mapping[K, Tensor], right: Mapping[K, Tensor], join: Callable[..., Tensor]) -> dict[K, Tensor]:
    return {name: join(tensor, right[name]) for name, tensor in left.items() if name in right}


def _entry(mapping: Mapping[K, Tensor], name: K, kind: str) -> Tensor:
    if name not in mapping:
        hint = nearest(str(name), map(str, mapping))
        raise CheckpointError(f"the ranges hold no {kind} {name}", fix=hint or "calibrate this model again")
    return mapping[name]


def _check_percent(percent: float) -> None:
    if not 0.0 < percent <= 100.0:
        raise RecipeError(f"percentile {percent}", allowed="more than 0, to 100")
