"""Values of a metric as colours: the brightest is always the worst, whichever way the metric runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from workbench.evaluation.palette import BROKEN, ERROR_MAP, EXACT, MISSING


@dataclass(frozen=True)
class MetricView:
    """How a metric is shown.

    Attributes:
        label: name and unit.
        text: a format for one value; empty for three digits, and no power of ten where it can be avoided.
        log: whether colours follow the logarithm of what is ``shown``.
        sign: 1 when larger is worse, -1 when smaller is.
        from_one: colours follow the distance from 1 (a cosine of 0.99 and one of 0.999 are far apart).
        colors: the name of a matplotlib colour map, best to worst.
        center: the value that has the middle colour, with as much room on either side; None spreads the colours from
            the best value to the worst.
        nan_is_missing: a value that is not a number is one that nobody measured; else it is the worst of all.
        meaning: what the colours on either side of the middle say; empty for nothing.
    """

    label: str
    text: str
    log: bool = True
    sign: int = 1
    from_one: bool = False
    colors: str = ERROR_MAP
    center: float | None = None
    nan_is_missing: bool = False
    meaning: str = ""


METRIC_VIEWS: dict[str, MetricView] = {
    "relative_l2": MetricView("relative L2 error", ".3g"),
    "cosine": MetricView("cosine", ".6f", from_one=True),
    "snr_db": MetricView("signal to noise [dB]", ".1f", log=False, sign=-1),
    "max_abs": MetricView("largest absolute error", ".3g"),
}


@dataclass(frozen=True)
class ColoredCells:
    """Hex colours in the shape of the values, and what they span; None where there is nothing to span.

    Attributes:
        colors: one per value.
        best, worst: the values at the ends of the colour scale.
        least, largest: of the values that have a place on it; a scale around a middle may reach further.
    """

    colors: NDArray[Any]
    best: float | None = None
    worst: float | None = None
    least: float | None = None
    largest: float | None = None


def badness(values: NDArray[np.float64], view: MetricView) -> NDArray[np.float64]:
    """Numbers that are larger where a value is worse; what is no number is the worst of all, or NaN where missing."""
    result = view.sign * (1 - values if view.from_one else values)
    return result if view.nan_is_missing else np.where(np.isnan(result), np.inf, result)


def color_cells(values: NDArray[np.float64], view: MetricView) -> ColoredCells:
    """Colours of a table of values; exact cells are grey, cells that are not finite red."""
    badness = view.sign * (1 - values if view.from_one else values)
    missing = np.isnan(badness) & view.nan_is_missing
    broken = (np.isnan(badness) & ~missing) | (badness == np.inf)
    if view.log:
        # A cosine can pass 1 by rounding: such a cell is exact.
        badness = np.log10(np.where(badness > 0, badness, np.nan))
    known = np.isfinite(badness) & ~broken & ~missing
    colors = np.full(values.shape, EXACT, dtype=object)
    colors[broken], colors[missing] = BROKEN, MISSING
    if not known.any():
        return ColoredCells(colors)
    low, high = badness[known].min(), badness[known].max()
    best, worst = values[known][badness[known].argmin()], values[known][badness[known].argmax()]
    if view.center is not None:
        middle = np.log10(view.center) if view.log else view.center
        reach = max(abs(low - middle), abs(high - middle))
        low, high = middle - reach, middle + reach
        best, worst = (10**low, 10**high) if view.log else (low, high)
    levels = (
        (badness[known] - low) / (high - low)
        if high > low
        else np.full(known.sum(), 0.0 if view.center is None else 0.5)
    )
    colors[known] = [to_hex(color) for color in colormaps[view.colors](levels)]
    return ColoredCells(colors, float(best), float(worst), float(values[known].min()), float(values[known].max()))


def scale_gradient(colors: str = ERROR_MAP) -> str:
    """A colour map as a CSS gradient, best to worst."""
    stops = [to_hex(color) for color in colormaps[colors](np.linspace(0, 1, 9))]
    return f"linear-gradient(to right, {', '.join(stops)})"


def value_text(value: float, view: MetricView) -> str:
    """One value in words."""
    if np.isnan(value):
        return "not known" if view.nan_is_missing else "not a number"
    if value == np.inf and view.sign < 0:
        return "infinite (exact)"
    if view.text:
        return format(value, view.text)
    return number_text(value)


def number_text(value: float) -> str:
    """Three significant digits, or a whole number from 1000 on; a power of ten where it is very large or small."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e7 else f"{value:.3g}"
