"""What the panel of ranges says in words: its heading, the names of its buttons, one place in figures. Markup only."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.bench.bench import QUICK_LOOK
from workbench.bench.state import Calibration
from workbench.errors import WorkbenchError, nearest
from workbench.evaluation.range_table import ratio_table, top_channels
from workbench.ui.cell_colors import value_text
from workbench.ui.ranges_charts import RANGE_VIEWS, Seen, per_head
from workbench.ui.ranges_comparisons import AFTER_SMOOTHING, SMOOTHING, title

SHOWS = ("this", "other", "ratio")
# The table of channels has so many rows; or one for each channel, where there are not many more.
FEW_LISTED, MOST_LISTED = 8, 12
_VALUE_SITE, _QKV_OUTPUT_SITE = "V", "qkv output"
# A cell that is so much larger is orange to the eye.
_GROWN = 1.5
_MOST_DECIMALS = 4
_SAID = ("absmax", "outlier_ratio")


def require_known(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value of one of the panel's traits that is not among those that it can take.

    Raises:
        WorkbenchError: it is not; the nearest one is named.
    """
    if value not in allowed:
        shown = ", ".join(each or "''" for each in allowed[:8]) + (" ..." if len(allowed) > 8 else "")
        raise WorkbenchError(f"{name} {value!r}", allowed=shown, fix=nearest(value, allowed) or "name one of them")


def heading(calibration: Calibration | None, *, on_bench: bool) -> str:
    """What is shown; or what to do when there is nothing to show."""
    quick = f"{QUICK_LOOK.samples} windows of {QUICK_LOOK.length} tokens"
    if calibration is None and not on_bench:
        return "No ranges yet: give the panel some, <code>RangesPanel(ActivationRanges.load(folder))</code>."
    if calibration is None:
        return (
            f"Nothing is calibrated yet. A quick look at {quick} comes first; "
            "for a whole calibration press Calibrate below."
        )
    text = f"<b>Activation ranges</b> of {html.escape(title(calibration.ranges))}"
    tokens = sum(source.tokens for source in calibration.ranges.source)
    if on_bench and tokens <= QUICK_LOOK.samples * QUICK_LOOK.length:
        text += (
            ". This is a quick look: a whole calibration sees more tokens, and larger magnitudes. "
            "Open Calibrate and press its button."
        )
    return text


def button_names(compare: str) -> list[tuple[str, str]]:
    """What the map can show, in the words that fit what is compared."""
    this, other = ("before", "after") if compare == SMOOTHING else ("this", "other")
    return list(zip((this, other, f"{other} / {this}"), SHOWS, strict=True))


def describe(seen: Sequence[Seen], place: str) -> str:
    """One place in one sentence: of each set of ranges its largest magnitude, and how far its channels differ."""
    words = []
    for each in seen:
        row: dict[Any, Any] = each.table.set_index("place").loc[place].to_dict()
        said = [f"{RANGE_VIEWS[name].label} {value_text(row[name], RANGE_VIEWS[name])}" for name in _SAID]
        words.append(f"{html.escape(each.name)}: {', '.join(said)}")
    if len(seen) > 1 and seen[1].name == AFTER_SMOOTHING and not seen[1].has_histogram(place):
        words.append("no histogram afterwards, as smoothing divides every channel by a number of its own")
    return "; ".join(words)


def why_larger(shows: str, metric: str, seen: Sequence[Seen]) -> str:
    """Why smoothing has made some places of the map larger, where it did; empty where there is nothing to explain.

    Args:
        shows: one of ``SHOWS``.
        metric: what the map shows.
        seen: before and after.
    """
    if (shows, metric, len(seen)) != ("ratio", "absmax", 2) or seen[1].name != AFTER_SMOOTHING:
        return ""
    ratios = ratio_table(seen[0].table, seen[1].table)
    values = ratios[ratios["site"] == _VALUE_SITE]
    largest = values["absmax"].max()
    if values.empty or not largest >= _GROWN:
        return ""
    layer = values["layer"].iloc[int(values["absmax"].argmax())]
    output = ratios.loc[(ratios["site"] == _QKV_OUTPUT_SITE) & (ratios["layer"] == layer), "absmax"]
    what = "V, and with it qkv output," if (output >= _GROWN).any() else "V"
    return (
        f"{what} becomes up to {value_text(largest, RANGE_VIEWS['absmax'])} times as large (layer {layer}): smoothing "
        "divides V by the scales of o, below 1 where o's input is small against o's weights."
    )


def outliers_table(seen: Sequence[Seen], place: str) -> str:
    """The largest channels as a small table; all of them where they are few."""
    count = len(seen[0].channel_values(place))
    top = top_channels(seen[0].ranges, place, count if count <= MOST_LISTED else FEW_LISTED)
    columns = {
        "": [html.escape(name) for name in top["name"]],
        "largest": _figures(top["absmax"]),
        "× median": ["" if pd.isna(value) else f"{value:.1f}" for value in top["times_median"]],
    }
    if len(seen) > 1:
        other = seen[1].channel_values(place)
        name = "after" if seen[1].name == AFTER_SMOOTHING else "other"
        columns[name] = _figures([other[channel] for channel in top["channel"]])
    head = "".join(f"<th>{each}</th>" for each in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in zip(*columns.values(), strict=True)
    )
    what = "heads" if per_head(place) else "channels"
    said = f"All {count} {what}" if len(top) == count else f"{len(top)} largest of {count:,} {what}"
    return f'<table class="wb-table"><caption>{said}</caption><tr>{head}</tr>{rows}</table>'


def _figures(values: Iterable[float]) -> list[str]:
    """The numbers of one column, all with as many decimals: as many as give the smallest one three digits, or four.

    What would be nothing but zeros then is written with a power of ten.
    """
    known = np.asarray(list(values), dtype=np.float64)
    sizes = np.abs(known[np.isfinite(known) & (known != 0)])
    decimals = min(_MOST_DECIMALS, max(0, 2 - math.floor(math.log10(sizes.min())))) if len(sizes) else 0
    least = 10.0**-decimals
    return [f"{value:.2g}" if 0 < abs(value) < least else f"{value:,.{decimals}f}" for value in known]
