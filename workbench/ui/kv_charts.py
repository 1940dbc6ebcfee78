"""Charts of an INT8 KV cache: errors over depth and by percentile, heads, magnitudes. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from workbench.evaluation.kv_table import Values, kv_histogram, kv_maxima
from workbench.evaluation.palette import BEST, CHOSEN, KV, PRECISION
from workbench.quantization.kv_error import DEFAULT_PERCENTILES, KVCurve, KVError
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int8KVCache
from workbench.ui.cell_colors import MetricView
from workbench.ui.chart import Axis, Bars, Chart, Line, Mark, Points, Rule

GRANULARITIES = {"per_head": "per head", "per_tensor": "per tensor"}
PART_NAMES = {"key": "keys, after RoPE", "value": "values"}
MAXIMA_VIEW = MetricView("largest magnitude", "", nan_is_missing=True)

_COLOR = PRECISION["int8 KV cache"]
_MARKERS = {"per_head": "o", "per_tensor": "s"}
_WIDTH, _HEIGHT = 515, 250
# Ticks beside each other: more would not fit.
_MOST_TICKS = 16
# Places on the percentile axis, which runs by what is left out: 99, 99.9, 99.99 are one apart; 100 leaves nothing.
_ALL_PLACE, _LAST_PLACE = 3.0, 2.7
# How far below the largest integer's magnitude a histogram begins.
_SHOWN_SPAN = 2.0**12


@dataclass(frozen=True, eq=False)
class LayerPicture:
    """What is known of one layer.

    Attributes:
        layer: which one.
        how: the choice that is shown.
        stored: ranges that hold its keys and values as they are stored.
        now: the errors at the percentile of ``how``, by granularity; may lack the other one.
        curves: by granularity; may lack some or all.
    """

    layer: int
    how: Int8KVCache
    stored: ActivationRanges
    now: Mapping[str, KVError]
    curves: Mapping[str, KVCurve] = field(default_factory=dict)

    @property
    def chosen(self) -> KVError:
        """The error of ``how``."""
        return self.now[self.how.granularity]


def depth_chart(frame: pd.DataFrame, how: Int8KVCache, layer: int) -> Chart:
    """Each layer's error with both granularities; the shown one of :func:`workbench.bench.kv_book.kv_frame`."""
    layers = frame["layer"].to_numpy(np.float64)
    marks: list[Mark] = []
    for name, words in GRANULARITIES.items():
        errors = frame[f"error_{name}"].to_numpy(np.float64)
        texts = [
            f"layer {n:.0f}, {words}: {percent(e)}\nclick to look at it" for n, e in zip(layers, errors, strict=True)
        ]
        chosen = " (chosen)" if name == how.granularity else ""
        dash = name == "per_tensor"
        marks.append(Line(layers, 100 * errors, words + chosen, _COLOR, dash=dash, marker=_MARKERS[name], texts=texts))
    now = frame.loc[frame["layer"] == layer, f"error_{how.granularity}"].to_numpy(np.float64)
    if len(now) and np.isfinite(now[0]):
        marks.append(Points([layer], 100 * now, f"layer {layer}: {percent(now[0])}", CHOSEN, 10.0))
    marks.append(Rule("x", layer, "", CHOSEN))
    title = f"Error of attention's output, layer by layer, at {how.percentile:g} %"
    return Chart(title, Axis("layer"), Axis("relative L2 [%]", "log"), tuple(marks), _WIDTH, _HEIGHT)


def curve_chart(picture: LayerPicture) -> Chart:
    """One layer's error by percentile, with the minimum and the choice. Its first marks are those of ``curves``."""
    marks: list[Mark] = []
    for name, curve in picture.curves.items():
        places = [percentile_place(each) for each in curve.percentiles]
        errors = [100 * error.relative_l2 for error in curve.errors]
        texts = [
            f"{at:g} %, {GRANULARITIES[name]}: {percent(error.relative_l2)}\nclipped: {clipped_text(error)}\n"
            "click to take it"
            for at, error in zip(curve.percentiles, curve.errors, strict=True)
        ]
        dash = name == "per_tensor"
        marks.append(Line(places, errors, GRANULARITIES[name], _COLOR, dash=dash, marker=_MARKERS[name], texts=texts))
    known = picture.curves.get(picture.how.granularity)
    if known is not None and is_whole(known):
        best, least = known.best
        marks.append(
            Points([percentile_place(best)], [100 * least], f"least: {best:g} %, {percent(least)}", BEST, 11.0)
        )
    at, error = percentile_place(picture.how.percentile), picture.chosen.relative_l2
    marks += [Points([at], [100 * error], f"chosen: {percent(error)}", CHOSEN, 8.0), Rule("x", at, "", CHOSEN)]
    shown = (
        sorted({*DEFAULT_PERCENTILES, picture.how.percentile}) if picture.how.percentile < 98 else DEFAULT_PERCENTILES
    )
    ticks = tuple((percentile_place(each), f"{each:g}") for each in shown)
    whole = all(is_whole(curve) for curve in picture.curves.values()) and len(picture.curves) == len(GRANULARITIES)
    title = f"Layer {picture.layer}: error by percentile" + ("" if whole else " (being computed)")
    x = Axis("share of the calibrated magnitudes that a scale covers [%]", ticks=ticks)
    return Chart(title, x, Axis("relative L2 [%]", "log"), tuple(marks), _WIDTH, _HEIGHT)


def heads_chart(picture: LayerPicture, head: int | None) -> Chart:
    """What each KV head contributes, as chosen and with the other granularity."""
    marks: list[Mark] = []
    for name, error in sorted(picture.now.items(), key=lambda item: item[0] != picture.how.granularity):
        heads, shares = np.arange(len(error.by_head)), error.by_head.numpy()
        texts = [f"head {each}, {GRANULARITIES[name]}: {percent(share)}" for each, share in enumerate(shares)]
        if name == picture.how.granularity:
            colors = [CHOSEN if each == head else _COLOR for each in heads]
            marks.append(Bars(heads, 100 * shares, f"{GRANULARITIES[name]} (chosen)", colors, texts=texts))
        else:
            marks.append(Points(heads, 100 * shares, GRANULARITIES[name], "", 7.0, texts=texts))
    count = len(picture.chosen.by_head)
    ticks = tuple((float(each), str(each)) for each in range(0, count, -(-count // _MOST_TICKS)))
    title = f"Layer {picture.layer}: error of the query heads that read each KV head"
    return Chart(title, Axis("KV head", ticks=ticks), Axis("relative L2 [%]", low=0.0), tuple(marks), _WIDTH, _HEIGHT)


def magnitudes_chart(picture: LayerPicture, head: int | None) -> Chart:
    """How often which magnitude of K and V occurs, and what the scales cover."""
    marks: list[Mark] = []
    error = picture.chosen
    for part, limits in (("key", error.key_limit), ("value", error.value_limit)):
        found = kv_histogram(picture.stored, (picture.layer, part), head)
        color, letter = KV[part][0], part[0].upper()
        if found is not None:
            edges, counts = _upper_part(found, float(limits.max()))
            marks.append(Line(edges, np.append(counts, 0), PART_NAMES[part], color, step=True, fill=True))
        shown = limits.reshape(-1).double().numpy()
        if head is not None and len(shown) > 1:
            shown = shown[head : head + 1]
        marks.append(Rule("x", float(shown.min()), f"{letter} clip{', least' if len(shown) > 1 else ''}", color))
        if len(shown) > 1:
            marks.append(Rule("x", float(shown.max()), f"{letter} clip, largest", color))
    which = "all heads" if head is None else f"KV head {head}"
    title = f"Layer {picture.layer}, {which}: magnitudes and their limits"
    return Chart(title, Axis("magnitude", "log"), Axis("values per octave", "log"), tuple(marks), _WIDTH, _HEIGHT)


def _upper_part(histogram: tuple[Values, Values], limit: float) -> tuple[Values, Values]:
    """Without what is so small that it is stored as 0 anyway."""
    edges, counts = histogram
    first = int(np.searchsorted(edges[:-1], limit / _SHOWN_SPAN))
    return (edges[first:], counts[first:]) if first < len(counts) else histogram


def charts_of(picture: LayerPicture, frame: pd.DataFrame, head: int | None) -> list[Chart]:
    """All four."""
    return [
        depth_chart(frame, picture.how, picture.layer),
        curve_chart(picture),
        heads_chart(picture, head),
        magnitudes_chart(picture, head),
    ]


def maxima_chart(ranges: ActivationRanges) -> Chart:
    """The largest K and V of each layer: what is known before any error is."""
    marks = []
    for part, (color, marker) in KV.items():
        largest: Values = kv_maxima(ranges, part).max(0)
        marks.append(Line(np.arange(len(largest)), largest, PART_NAMES[part], color, marker=marker))
    title = "Largest magnitude of each layer"
    return Chart(title, Axis("layer"), Axis("largest magnitude", "log"), tuple(marks), _WIDTH, _HEIGHT)


def is_whole(curve: KVCurve) -> bool:
    """Whether every percentile that is tried by default is known."""
    return set(DEFAULT_PERCENTILES) <= set(curve.percentiles)


def percentile_place(percentile: float) -> float:
    """Where a percentile stands on its axis."""
    left_out = 100.0 - percentile
    return _ALL_PLACE if left_out <= 0 else min(-math.log10(left_out), _LAST_PLACE)


def name_of(how: Int8KVCache) -> str:
    """A choice in words."""
    return f"{GRANULARITIES[how.granularity]} at {how.percentile:g} %"


def percent(share: float) -> str:
    """Three significant digits of a share, in percent."""
    return "not known yet" if math.isnan(share) else f"{100 * share:.3g} %"


def clipped_text(error: KVError) -> str:
    """The shares of keys and of values that are clipped."""
    return f"K {percent(error.key_clipped)}, V {percent(error.value_clipped)}"
