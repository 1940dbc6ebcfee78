"""What calibration saw, as tables and curves: one row per layer and site, and one place close up. Draws nothing.

A place is named as in :meth:`workbench.quantization.ranges.ActivationRanges.percentile`: ``layers.3.mlp.down.input``,
``layers.3.mlp.down.output``, ``layers.3.key``, ``lm_head.input``. Its channels are those of the tensor; those of K and
V are KV heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.errors import CheckpointError, nearest
from workbench.quantization.ranges import BINS, PERCENTILES, STEPS_PER_OCTAVE, ActivationRanges, bin_edges, percentiles

Values = NDArray[np.float64]

# A bin of a picture: wide enough to be drawn, narrow enough to show a second hump.
SHOWN_STEPS_PER_OCTAVE = 8


@dataclass(frozen=True)
class RangeSite:
    """One kind of place.

    Attributes:
        name: in maps and tables.
        group: the part of a layer that it belongs to; "LM head" belongs to none.
        suffix: the place's name after ``layers.N.``.
        tap: the tap that holds the tensor (:mod:`workbench.model.taps`).
    """

    name: str
    group: str
    suffix: str
    tap: str


LAYER_SITES: tuple[RangeSite, ...] = (
    RangeSite("qkv input", "attention", "attention.qkv.input", "attention_norm"),
    RangeSite("qkv output", "attention", "attention.qkv.output", "attention.qkv"),
    RangeSite("K, after RoPE", "attention", "key", "attention.key"),
    RangeSite("V", "attention", "value", "attention.value"),
    RangeSite("o input", "attention", "attention.o.input", "attention.context"),
    RangeSite("o output", "attention", "attention.o.output", "attention.o"),
    RangeSite("gate, up input", "MLP", "mlp.gate_up.input", "mlp_norm"),
    RangeSite("gate, up output", "MLP", "mlp.gate_up.output", "mlp.gate_up"),
    RangeSite("down input", "MLP", "mlp.down.input", "mlp.act"),
    RangeSite("down output", "MLP", "mlp.down.output", "mlp.down"),
)
MODEL_SITES: tuple[RangeSite, ...] = (
    RangeSite("LM head input", "LM head", "lm_head.input", "final_norm"),
    RangeSite("LM head output", "LM head", "lm_head.output", "logits"),
)
SITES: dict[str, RangeSite] = {site.name: site for site in (*LAYER_SITES, *MODEL_SITES)}


def percentile_column(percent: float) -> str:
    """``99.9`` -> ``p99_9``, the column of :func:`range_table`."""
    return f"p{percent:g}".replace(".", "_")


def range_table(ranges: ActivationRanges) -> pd.DataFrame:
    """One row per layer and site, in the order of a forward pass.

    Columns: place, layer (missing for the LM head), site, linear, channels, absmax, a percentile of the magnitudes for
    each of ``PERCENTILES`` (p99, p99_9, p99_99; NaN where no histogram was kept), median (of the channels' maxima),
    outlier_ratio (the largest channel over the median one; NaN where the median is 0), top_channel.
    """
    rows = []
    for place, layer, site in places_of(ranges):
        maxima = channel_maxima(ranges, place)
        median, largest = float(np.median(maxima)), float(maxima.max())
        rows.append(
            {
                "place": place,
                "layer": layer,
                "site": site.name,
                "linear": linear_of(place),
                "channels": len(maxima),
                "absmax": largest,
                "median": median,
                "outlier_ratio": largest / median if median > 0 else np.nan,
                "top_channel": int(maxima.argmax()),
            }
        )
    table = pd.DataFrame(rows)
    for percent, values in _percentiles(ranges, table).items():
        table.insert(list(table).index("median"), percentile_column(percent), values)
    return table.astype({"layer": "Int64"})


def ratio_table(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """``other`` over ``table``: every number of the places that both have, by place; NaN where one has none."""
    numbers = ["absmax", *map(percentile_column, PERCENTILES), "outlier_ratio"]
    left, right = table.set_index("place"), other.set_index("place").reindex(table["place"])
    ratios = right[numbers] / left[numbers].where(left[numbers] > 0)
    return pd.concat([left[["layer", "site"]], ratios], axis=1).reset_index()


def places_of(ranges: ActivationRanges) -> list[tuple[str, int | None, RangeSite]]:
    """Every place that the ranges know: its name, its layer, its site."""
    found: list[tuple[str, int | None, RangeSite]] = []
    for layer in sorted({int(name.split(".")[1]) for name in ranges.inputs if name.startswith("layers.")}):
        for site in LAYER_SITES:
            place = f"layers.{layer}.{site.suffix}"
            if _knows(ranges, place):
                found.append((place, layer, site))
    return found + [(site.suffix, None, site) for site in MODEL_SITES if _knows(ranges, site.suffix)]


def channel_maxima(ranges: ActivationRanges, place: str) -> Values:
    """The absolute maxima of a place, ``[channels]`` float64; one per KV head for K and V.

    Raises:
        CheckpointError: the ranges hold no such place.
    """
    if not _knows(ranges, place):
        hint = nearest(place, [name for name, _, _ in places_of(ranges)])
        raise CheckpointError(f"the ranges hold no place {place!r}", fix=hint or "calibrate this model again")
    owner, _, side = place.rpartition(".")
    if side in ("key", "value"):
        maxima = (ranges.keys if side == "key" else ranges.values)[int(owner.removeprefix("layers."))]
    else:
        maxima = (ranges.inputs if side == "input" else ranges.outputs)[owner]
    return maxima.double().cpu().numpy()


def shown_histogram(ranges: ActivationRanges, place: str) -> tuple[Values, Values] | None:
    """How many magnitudes lie where, in eight bins per octave; None where no histogram was kept.

    Returns:
        The bins' edges ``[bins + 1]`` (magnitudes, the first above 0) and values per octave ``[bins]``: counts over
        the bins' widths, which are equal within an octave and not from one to the next. From the first bin with
        anything in it to the last. Zeros, and what is smaller than any bin, are left out.
    """
    counts = _counts(ranges, place)
    return None if counts is None else per_octave(counts)


def per_octave(counts: torch.Tensor) -> tuple[Values, Values] | None:
    """``[BINS]`` int64 counts as :func:`shown_histogram` gives them; None where nothing above 0 was counted."""
    merge = STEPS_PER_OCTAVE // SHOWN_STEPS_PER_OCTAVE
    fine = counts.double().cpu().numpy().copy()
    fine[0] = 0.0
    wide = fine.reshape(BINS // merge, merge).sum(1)
    edges = bin_edges().numpy()[::merge].copy()
    edges[0] = edges[1] / 2 ** (1 / SHOWN_STEPS_PER_OCTAVE)
    wide /= np.diff(np.log2(edges))
    filled = np.flatnonzero(wide)
    if not len(filled):
        return None
    first, last = int(filled[0]), int(filled[-1])
    return edges[first : last + 2], wide[first : last + 1]


def counted_values(ranges: ActivationRanges, place: str) -> int:
    """How many magnitudes a place's histogram holds, over all tokens and channels; 0 where none was kept."""
    counts = _counts(ranges, place)
    return 0 if counts is None else int(counts.sum())


def place_percentiles(ranges: ActivationRanges, place: str) -> dict[float, float]:
    """Percent -> magnitude, for each of ``PERCENTILES``; empty where no histogram was kept."""
    if _counts(ranges, place) is None:
        return {}
    return {percent: ranges.percentile(place, percent) for percent in PERCENTILES}


def top_channels(ranges: ActivationRanges, place: str, count: int = 8) -> pd.DataFrame:
    """The channels with the largest maxima, largest first.

    Columns: channel (index), name (:func:`channel_name`), absmax, times_median (NaN where the median is 0).
    """
    maxima = channel_maxima(ranges, place)
    order = np.argsort(-maxima, kind="stable")[:count]
    median = float(np.median(maxima))
    return pd.DataFrame(
        {
            "channel": order,
            "name": [channel_name(ranges, place, int(channel)) for channel in order],
            "absmax": maxima[order],
            "times_median": maxima[order] / median if median > 0 else np.full(len(order), np.nan),
        }
    )


def channel_name(ranges: ActivationRanges, place: str, channel: int) -> str:
    """What a channel is: of which head, of gate or of up, which token; else only its number."""
    owner, _, side = place.rpartition(".")
    if side in ("key", "value"):
        return f"head {channel}"
    if place == "lm_head.output":
        return f"token {channel}"
    if place.endswith("mlp.gate_up.output"):
        half = len(ranges.outputs[owner]) // 2
        return f"gate {channel}" if channel < half else f"up {channel - half}"
    if not re.search(r"attention\.(qkv\.output|o\.input)$", place):
        return f"channel {channel}"
    layer = int(owner.split(".")[1])
    queries, head_dim = len(ranges.inputs[f"layers.{layer}.attention.o"]), _head_dim(ranges, layer)
    keys = head_dim * len(ranges.keys[layer])
    for part, begin, end in (("Q", 0, queries), ("K", queries, queries + keys), ("V", queries + keys, channel + 1)):
        if channel < end:
            letter = f"{part} " if side == "output" else ""
            return f"{letter}head {(channel - begin) // head_dim}, dim {(channel - begin) % head_dim}"
    raise AssertionError(channel)


def hottest_place(table: pd.DataFrame) -> str:
    """The input of a linear layer whose largest channel stands highest above the others: what breaks a model first."""
    inputs = table[table["place"].str.endswith(".input") & table["outlier_ratio"].notna()]
    chosen = inputs if len(inputs) else table
    return str(chosen["place"].iloc[int(chosen["outlier_ratio"].fillna(0).argmax())])


def linear_of(place: str) -> str:
    """The linear layer at a place; K and V are outputs of qkv."""
    owner, _, side = place.rpartition(".")
    return f"{owner}.attention.qkv" if side in ("key", "value") else owner


def place_of(name: str, side: str = "input") -> str | None:
    """The place that a tap or a linear layer means; None where it means none.

    Args:
        name: a place, a linear layer, a tap, or a smoothing group (``layers.3.down``).
        side: "input" or "output", of a linear layer's name: it is also the tap of its output.
    """
    layer, _, rest = name.removeprefix("layers.").partition(".") if name.startswith("layers.") else ("", "", name)
    sites = LAYER_SITES if layer else MODEL_SITES
    before = f"layers.{layer}." if layer else ""
    linears = {site.suffix.rpartition(".")[0] for site in sites if site.suffix.endswith("put")}
    for linear in linears:
        if rest in (linear, linear.rpartition(".")[2]):
            return f"{before}{linear}.{'output' if side == 'output' else 'input'}"
    return next((before + site.suffix for site in sites if rest in (site.suffix, site.tap)), None)


def _head_dim(ranges: ActivationRanges, layer: int) -> int:
    """From the widths: qkv's output holds the queries, as many as o reads, and K and V of each KV head."""
    width = len(ranges.outputs[f"layers.{layer}.attention.qkv"]) - len(ranges.inputs[f"layers.{layer}.attention.o"])
    return width // (2 * len(ranges.keys[layer]))


def _knows(ranges: ActivationRanges, place: str) -> bool:
    owner, _, side = place.rpartition(".")
    if side in ("key", "value"):
        layer = owner.removeprefix("layers.")
        return layer.isdigit() and int(layer) in (ranges.keys if side == "key" else ranges.values)
    return side in ("input", "output") and owner in (ranges.inputs if side == "input" else ranges.outputs)


def _counts(ranges: ActivationRanges, place: str) -> torch.Tensor | None:
    """``[BINS]`` int64: K and V over all heads."""
    if place in ranges.kv_histograms:
        return ranges.kv_histograms[place].sum(0)
    return ranges.histograms.get(place)


def _percentiles(ranges: ActivationRanges, table: pd.DataFrame) -> dict[float, Values]:
    """Of every row at once; as :meth:`ActivationRanges.percentile`, and NaN where there is no histogram."""
    counts = [_counts(ranges, place) for place in table["place"]]
    kept = [row for row, each in enumerate(counts) if each is not None]
    found = {percent: np.full(len(table), np.nan) for percent in PERCENTILES}
    if kept:
        stacked = torch.stack([each for each in counts if each is not None])
        largest = table["absmax"].to_numpy()[kept]
        for percent, values in found.items():
            values[kept] = np.minimum(percentiles(stacked, percent).double().cpu().numpy(), largest)
    return found
