"""The pictures of activation ranges: the map of layers and sites as cells, and one place close up as charts.

Arranges what :mod:`workbench.evaluation.range_table` computed; computes nothing, and knows no widget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.evaluation.palette import AFTER, BEFORE, KV, RATIO_MAP, RATIO_MEANING
from workbench.evaluation.range_table import (
    SITES,
    Values,
    channel_maxima,
    channel_name,
    counted_values,
    percentile_column,
    place_percentiles,
    range_table,
    ratio_table,
    shown_histogram,
)
from workbench.quantization.ranges import PERCENTILES, ActivationRanges
from workbench.ui.cell_colors import MetricView, value_text
from workbench.ui.chart import Axis, Bars, Chart, Line, Mark, Rule, kept_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE_VIEWS: dict[str, MetricView] = {
    "absmax": MetricView("largest magnitude", "", nan_is_missing=True),
    **{
        percentile_column(percent): MetricView(f"{percent:g} % of magnitudes are below", "", nan_is_missing=True)
        for percent in PERCENTILES
    },
    "outlier_ratio": MetricView("largest channel / median channel", "", nan_is_missing=True),
}
# The LM head comes after the last layer.
HEAD = "head"
CHART_WIDTH, CHART_HEIGHT = 352, 290
_FIGURE_WIDTH = 1050
_SHORT = 16
# Names of heads beside each other: more would not fit.
MOST_HEAD_TICKS = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """One set of ranges as the panel shows it.

    Attributes:
        name: in legends.
        ranges: themselves.
        table: of :func:`workbench.evaluation.range_table.range_table`.
    """

    name: str
    ranges: ActivationRanges
    table: pd.DataFrame

    @classmethod
    def of(cls, name: str, ranges: ActivationRanges) -> Seen:
        return cls(name, ranges, range_table(ranges))

    def channel_values(self, place: str) -> Values:
        """``[channels]``, each channel's largest magnitude."""
        return channel_maxima(self.ranges, place)

    def has_histogram(self, place: str) -> bool:
        """Whether magnitudes of this place were counted."""
        return self.count_values(place) > 0

    def count_values(self, place: str) -> int:
        """How many magnitudes of this place were counted."""
        return counted_values(self.ranges, place)


@dataclass(frozen=True, eq=False)
class RangeMap:
    """The cells of a map.

    Attributes:
        sites, columns: names of the rows and of the columns.
        places: ``[rows, columns]``, the name of each cell's place; empty where there is none.
        values: ``[rows, columns]``, NaN where there is none.
        view: how values become colours.
    """

    sites: list[str]
    columns: list[str]
    places: np.ndarray
    values: Values
    view: MetricView

    @property
    def groups(self) -> list[str]:
        return [SITES[site].group for site in self.sites]

    def cell_of(self, place: str) -> list[int]:
        """``[row, column]`` of a place; ``[-1, -1]`` where the map has none."""
        found = np.argwhere(self.places == place)
        return [int(found[0, 0]), int(found[0, 1])] if place and len(found) else [-1, -1]

    def texts(self) -> list[str]:
        """A tooltip per cell, row by row; empty where there is no place."""
        pairs = zip(self.places.flat, self.values.flat, strict=True)
        return [f"{place}: {self.view.label} {value_text(value, self.view)}" if place else "" for place, value in pairs]


def chosen_table(metric: str, shows: str, seen: Seen, other: Seen | None) -> tuple[MetricView, pd.DataFrame]:
    """How the map shows a metric of the one, the other, or their ratio, and the table behind it."""
    if other is None or shows == "this":
        return RANGE_VIEWS[metric], seen.table
    if shows == "other":
        return RANGE_VIEWS[metric], other.table
    return ratio_view(metric, (seen.name, other.name)), ratio_table(seen.table, other.table)


def range_map(table: pd.DataFrame, metric: str, view: MetricView) -> RangeMap:
    """A table's column as a map: sites down, layers across."""
    sites = [name for name in SITES if (table["site"] == name).any()]
    layers = sorted(int(layer) for layer in table["layer"].dropna().unique())
    columns = [*map(str, layers), *([HEAD] if table["layer"].isna().any() else [])]
    places = np.full((len(sites), len(columns)), "", dtype=object)
    values = np.full(places.shape, np.nan)
    for place, layer, site, value in table[["place", "layer", "site", metric]].itertuples(index=False):
        cell = sites.index(site), columns.index(HEAD if pd.isna(layer) else str(layer))
        places[cell], values[cell] = place, value
    return RangeMap(sites, columns, places, values, view)


def ratio_view(metric: str, names: tuple[str, str]) -> MetricView:
    """How a ratio of two sets of ranges is coloured: white where it is 1."""
    label = f"{names[1]} / {names[0]}, {RANGE_VIEWS[metric].label}"
    meaning = RATIO_MEANING.format(center=1)
    return MetricView(label, "", colors=RATIO_MAP, center=1.0, nan_is_missing=True, meaning=meaning)


def close_up(place: str, seen: Sequence[Seen]) -> list[Chart]:
    """One place: how often which magnitude occurs, and its channels' maxima; of one or two sets of ranges."""
    return [_histogram(place, seen), _heads(place, seen) if per_head(place) else _channels(place, seen)]


def per_head(place: str) -> bool:
    """Whether a place's channels are KV heads."""
    return place.rpartition(".")[2] in KV


def draw_all(cells: RangeMap, place: str, seen: Sequence[Seen], note: str = "") -> Figure:
    """The map above with its colour bar and a note under it, the close-up below, by matplotlib."""
    from workbench.ui.chart_figure import Picture, draw_rows, rows_height
    from workbench.ui.ranges_figure import draw_map

    charts = [dataclasses.replace(chart, width=_FIGURE_WIDTH // 2) for chart in close_up(place, seen)]
    heights = [0.85 + 0.26 * len(cells.sites) + (0.2 if note else 0), rows_height(charts)]
    figure = Picture(figsize=(_FIGURE_WIDTH / 100, sum(heights)), layout="constrained", facecolor="white")
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    draw_map(above, cells, place, note)
    draw_rows(below, charts)
    return figure


def _histogram(place: str, seen: Sequence[Seen]) -> Chart:
    marks: list[Mark] = []
    for each, color in zip(seen, (BEFORE, AFTER), strict=False):
        found = shown_histogram(each.ranges, place)
        if found is not None:
            edges, counts = found
            if len(seen) > 1:  # two calibrations need not have seen as many tokens
                counts = counts / each.count_values(place)
            marks.append(Line(edges, np.append(counts, 0), label=_label(each, seen), color=color, step=True, fill=True))
    first = seen[0]
    for percent, value in place_percentiles(first.ranges, place).items():
        marks.append(Rule("x", value, f"{percent:g} %"))
    marks.append(Rule("x", float(channel_maxima(first.ranges, place).max()), "largest", dash=False))
    if len(seen) > 1:
        largest = float(channel_maxima(seen[1].ranges, place).max())
        marks.append(Rule("x", largest, f"largest, {_short(seen[1].name)}", color=AFTER, dash=False))
    title = "How often which magnitude occurs"
    y = Axis("values per octave" if len(seen) < 2 else "share of the values per octave", "log")
    return Chart(title, Axis("magnitude", "log"), y, marks, CHART_WIDTH, CHART_HEIGHT)


def _channels(place: str, seen: Sequence[Seen]) -> Chart:
    marks: list[Mark] = []
    count = 0
    for each, color in zip(seen, (BEFORE, AFTER), strict=False):
        maxima = channel_maxima(each.ranges, place)
        order = np.argsort(-maxima, kind="stable")
        kept = kept_points(maxima[order])
        # On a logarithmic axis the first ranks stand far apart, and each is drawn.
        kept = np.union1d(kept, np.arange(min(100, len(order))))
        names = [f"{channel_name(each.ranges, place, int(order[rank]))}\nrank {rank + 1}" for rank in kept]
        texts = [f"{name}: {maxima[order[rank]]:.4g}" for name, rank in zip(names, kept, strict=True)]
        marks.append(Line(kept + 1, maxima[order][kept], _label(each, seen), color, texts=texts))
        if each is seen[0]:
            marks.append(Rule("y", float(np.median(maxima)), "median"))
        count = len(order)
    title = f"Largest magnitude of each of {count:,} channels"
    x, y = Axis("rank of the channel", "log"), Axis("largest magnitude", "log")
    return Chart(title, x, y, marks, CHART_WIDTH, CHART_HEIGHT)


def _heads(place: str, seen: Sequence[Seen]) -> Chart:
    """K and V side by side; or one of them before and after."""
    owner, _, part = place.rpartition(".")
    if len(seen) > 1:
        shown = [(_label(each, seen), each, place, color) for each, color in zip(seen, (BEFORE, AFTER), strict=False)]
    else:
        shown = [(side[0].upper(), seen[0], f"{owner}.{side}", color) for side, (color, _) in KV.items()]
    marks: list[Mark] = []
    heads = len(channel_maxima(seen[0].ranges, place))
    for step, (label, each, name, color) in enumerate(shown):
        maxima = channel_maxima(each.ranges, name)
        texts = [f"head {head}, {label}: {value:.4g}" for head, value in enumerate(maxima)]
        marks.append(Bars(np.arange(heads) + (step - 0.5) * 0.4, maxima, label, color, width=0.38, texts=texts))
    every = -(-heads // MOST_HEAD_TICKS)
    ticks = tuple((float(head), str(head)) for head in range(0, heads, every))
    which = "K and V" if len(seen) == 1 else part[0].upper()
    title = f"{which} of each KV head"
    return Chart(title, Axis("KV head", ticks=ticks), Axis("largest magnitude"), marks, CHART_WIDTH, CHART_HEIGHT)


def _short(name: str) -> str:
    return name if len(name) <= _SHORT else "other"


def _label(each: Seen, seen: Sequence[Seen]) -> str:
    return each.name if len(seen) > 1 else ""
