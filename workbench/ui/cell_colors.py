"""Values of a metric as colours: the brightest is always the worst, whichever way the metric runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from workbench.evaluation.palette import BROKEN, ERROR_MAP, EXACT


@dataclass(frozen=True)
class MetricView:
    """How a metric is shown.

    Attributes:
        label: name and unit.
        text: a format for one value.
        log: whether colours follow the logarithm of what is ``shown``.
        sign: 1 when larger is worse, -1 when smaller is.
        from_one: colours follow the distance from 1 (a cosine of 0.99 and one of 0.999 are far apart).
    """

    label: str
    text: str
    log: bool = True
    sign: int = 1
    from_one: bool = False


METRIC_VIEWS: dict[str, MetricView] = {
    "relative_l2": MetricView("relative L2 error", ".2e"),
    "cosine": MetricView("cosine", ".6f", from_one=True),
    "snr_db": MetricView("signal to noise [dB]", ".1f", log=False, sign=-1),
    "max_abs": MetricView("largest absolute error", ".2e"),
}


@dataclass(frozen=True)
class ColoredCells:
    """Hex colours in the shape of the values, and the best and worst value that they span (None: nothing to span)."""

    colors: NDArray[Any]
    best: float | None
    worst: float | None


def color_cells(values: NDArray[np.float64], view: MetricView) -> ColoredCells:
    """Colours of a table of values; exact cells are grey, cells that are not finite red."""
    badness = view.sign * (1 - values if view.from_one else values)
    broken = np.isnan(badness) | (badness == np.inf)
    if view.log:
        # A cosine can pass 1 by rounding: such a cell is exact.
        badness = np.log10(np.where(badness > 0, badness, np.nan))
    known = np.isfinite(badness) & ~broken
    colors = np.full(values.shape, EXACT, dtype=object)
    colors[broken] = BROKEN
    if not known.any():
        return ColoredCells(colors, None, None)
    low, high = badness[known].min(), badness[known].max()
    levels = (badness[known] - low) / ((high - low) or 1.0)
    colors[known] = [to_hex(color) for color in colormaps[ERROR_MAP](levels)]
    ordered = values[known][np.argsort(badness[known])]
    return ColoredCells(colors, float(ordered[0]), float(ordered[-1]))


def scale_gradient() -> str:
    """The colour map as a CSS gradient, best to worst."""
    stops = [to_hex(color) for color in colormaps[ERROR_MAP](np.linspace(0, 1, 9))]
    return f"linear-gradient(to right, {', '.join(stops)})"
