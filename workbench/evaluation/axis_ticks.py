"""Where the ticks of an axis stand and what they say: one notation an axis, no power of ten where a number will do.

    set_ticks(axes.xaxis)       # after the axis has its scale; the ticks follow its limits and its length

:func:`linear_ticks` and :func:`log_ticks` are the rule that ``workbench/ui/chart_axes.js`` has for the widgets, number
by number; a test compares the two. Knows nothing of what is drawn.
"""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import Formatter, Locator, NullFormatter

Tick = tuple[float, str]

# One tick in so many px: texts of an axis that runs across are wider than those of one that runs up are tall.
ACROSS_PX, UP_PX = 64, 34
# On a logarithmic axis that shows no more than this, every number is written out.
PLAIN_LOG10 = (-3.5, 4.3)
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PIXELS_PER_INCH = 100


def set_ticks(axis: Axis) -> None:
    """Give an axis of a figure these ticks."""
    ticks = _Ticks(axis.get_major_locator())
    axis.set_major_locator(ticks)
    axis.set_major_formatter(_Texts(ticks))
    axis.set_minor_formatter(NullFormatter())


def linear_ticks(low: float, high: float, most: float) -> list[Tick]:
    """Multiples of 1, 2 or 5 times a power of ten.

    Args:
        low, high: what the axis shows.
        most: about how many ticks there is room for.
    """
    rough = (high - low) / max(most, 1)
    if not (rough > 0 and math.isfinite(rough)):
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999)
    largest = max(abs(low), abs(high))
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(place * step, _linear_text(place * step, step, largest)) for place in places]


def log_ticks(low: float, high: float, most: float) -> list[Tick]:
    """Powers of ten, as many as there is room for; 2 and 5 times them too where few powers are in sight.

    Args:
        low, high: what the axis shows, above 0.
        most: about how many ticks there is room for.
    """
    first, last = math.log10(low), math.log10(high)
    if last - first < 0.8:
        return linear_ticks(low, high, most)
    every = max(1, math.ceil((last - first) / max(most, 1)))
    factors = (1, 2, 5) if last - first < min(2.2, most / 3) else (1,)
    plain = first > PLAIN_LOG10[0] and last < PLAIN_LOG10[1]
    exponents = [each for each in range(math.floor(first), math.floor(last + 1e-9) + 1) if each % every == 0]
    places = [(factor, exponent) for exponent in exponents for factor in factors]
    ticks = [
        (factor * 10.0**exponent, _log_text(factor, exponent, plain=plain))
        for factor, exponent in places
        if low * 0.999 <= factor * 10.0**exponent <= high * 1.001
    ]
    return ticks if len(ticks) > 1 else linear_ticks(low, high, most)


def number_text(value: float) -> str:
    """Four significant digits; a power of ten only below 0.001 and from a million on."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        exponent = math.floor(math.log10(size) + 1e-12)
        return f"{value / 10.0**exponent:.4g}×{_power_text(exponent)}"
    return f"{value:.7g}" if value == int(value) else f"{value:.4g}"


def _linear_text(at: float, step: float, largest: float) -> str:
    if abs(at) < step / 2:
        return "0"
    if largest < 1e-3 or largest >= 1e15:
        return number_text(at)
    unit, letter = next((each for each in _SI if largest >= each[0]), (1.0, "")) if largest >= 1e4 else (1.0, "")
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return f"{at / unit:.{decimals}f}".replace("-", "−") + letter


def _log_text(factor: int, exponent: int, *, plain: bool) -> str:
    if plain or -1 <= exponent <= 2:
        return f"{factor * 10.0**exponent:.{max(0, -exponent)}f}"
    return _power_text(exponent) if factor == 1 else f"{factor}×{_power_text(exponent)}"


def _power_text(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


class _Ticks(Locator):
    """Follows the limits and the length of the axis that it belongs to.

    Args:
        usual: the locator of the axis' scale, which knows what limits the scale can have.
    """

    def __init__(self, usual: Locator) -> None:
        self._usual = usual

    def __call__(self) -> list[float]:
        return [at for at, _ in self.ticks()]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [at for at, _ in self._between(vmin, vmax)]

    def nonsingular(self, v0: float, v1: float) -> tuple[float, float]:
        return self._usual.nonsingular(v0, v1)

    def view_limits(self, vmin: float, vmax: float) -> tuple[float, float]:
        return self._usual.view_limits(vmin, vmax)

    def ticks(self) -> list[Tick]:
        """Those of the axis as it is now."""
        assert self.axis is not None
        return self._between(*sorted(self.axis.get_view_interval()))

    def _between(self, low: float, high: float) -> list[Tick]:
        axis: Any = self.axis
        across = axis.axis_name == "x"
        box, figure = axis.axes.bbox, axis.axes.get_figure(root=True)
        length_px = (box.width if across else box.height) / figure.dpi * _PIXELS_PER_INCH
        make = log_ticks if axis.get_scale() == "log" and low > 0 else linear_ticks
        return make(low, high, length_px / (ACROSS_PX if across else UP_PX))


class _Texts(Formatter):
    """What the ticks say."""

    def __init__(self, ticks: _Ticks) -> None:
        self._ticks = ticks

    def __call__(self, x: float, pos: int | None = None) -> str:  # noqa: ARG002  # matplotlib's names
        texts = dict(self._ticks.ticks())
        return next((text for at, text in texts.items() if math.isclose(at, x, rel_tol=1e-9, abs_tol=0)), "")
