"""Charts of one smoothing group: its error over alpha, and the two ranges that alpha trades. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workbench.evaluation.palette import AFTER, BEFORE, BEST, CHOSEN
from workbench.quantization.alpha_search import AlphaCurve
from workbench.quantization.smoothing_trial import GroupError
from workbench.ui.cell_colors import number_text
from workbench.ui.chart import Axis, Chart, Line, Mark, Points, Rule, thin_out

# The place of the curve among the marks of its chart.
CURVE_MARK = 0


@dataclass(frozen=True, eq=False)
class GroupPicture:
    """What is known of one smoothing group.

    Attributes:
        name: ``layers.12.down``.
        now: at its alpha.
        plain: quantized without smoothing.
        curve: over all alphas; None while it is being computed.
    """

    name: str
    now: GroupError
    plain: GroupError
    curve: AlphaCurve | None = None


def curve_chart(picture: GroupPicture) -> Chart:
    """Error over alpha, with its minimum, where alpha stands now, and what the group errs by without smoothing."""
    now, curve = picture.now, picture.curve
    marks: list[Mark] = []
    if curve is not None:
        texts = [
            f"alpha {alpha:.2f}: error {percent(error)}\nclick to take it"
            for alpha, error in zip(curve.alphas, curve.errors, strict=True)
        ]
        marks.append(Line(*_points(curve), "error by alpha", AFTER, marker="o", texts=texts))
    better = ", better than any alpha" if curve is not None and picture.plain.error < curve.best[1] else ""
    plain = f"not smoothed: {percent(picture.plain.error)}{better}"
    marks.append(Rule("y", 100 * picture.plain.error, plain, BEFORE))
    if curve is not None:
        alpha, error = curve.best
        marks.append(Points([alpha], [100 * error], f"minimum: alpha {alpha:.2f}, {percent(error)}", BEST, 11.0))
    if now.alpha is not None:
        text = f"now: alpha {now.alpha:.2f}, {percent(now.error)}"
        marks += [Points([now.alpha], [100 * now.error], text, CHOSEN, 9.0), Rule("x", now.alpha, "", CHOSEN)]
    waiting = "" if curve is not None else " (the curve is being computed)"
    return Chart(
        f"Output error of {picture.name}{waiting}",
        Axis("alpha", low=0.0, high=1.0),
        Axis("output error, relative L2 [%]", "log"),
        tuple(marks),
        width=450,
        height=250,
    )


def input_chart(picture: GroupPicture) -> Chart:
    """Channel maxima of the group's input, sorted, before and after smoothing."""
    before, after = picture.plain, picture.now
    sides = (before.input_absmax, before.input_spread), (after.input_absmax, after.input_spread)
    return _maxima("Activations", "input channel", sides)


def weight_chart(picture: GroupPicture) -> Chart:
    """Maxima of the weight's columns, sorted, before and after smoothing."""
    before, after = picture.plain, picture.now
    sides = (before.weight_absmax, before.weight_spread), (after.weight_absmax, after.weight_spread)
    return _maxima("Weights", "weight column", sides)


def charts_of(picture: GroupPicture) -> list[Chart]:
    """All three."""
    return [curve_chart(picture), input_chart(picture), weight_chart(picture)]


def percent(share: float) -> str:
    """Three significant digits of a share, in percent."""
    return f"{100 * share:.3g} %"


def error_text(error: float | None, best: tuple[float, float] | None, plain: float | None = None) -> str:
    """A group's error, and the least of those that were tried, in words.

    Args:
        error: now; None where it was not measured.
        best: alpha of the least error, and that error; None where no alpha was tried.
        plain: the error without smoothing; said where no alpha that was tried is as good.
    """
    least = "" if best is None else f" (least {percent(best[1])} at {best[0]:.2f})"
    better = "" if plain is None or best is None or plain >= best[1] else f"; not smoothing is better: {percent(plain)}"
    return ("not measured" if error is None else percent(error)) + least + better


def _maxima(title: str, what: str, sides: tuple[tuple[Tensor, float], tuple[Tensor, float]]) -> Chart:
    (before, spread), (after, smoothed) = sides
    marks = (
        Line(*_sorted(before), f"before: largest / median {number_text(spread)}", BEFORE, dash=True),
        Line(*_sorted(after), f"smoothed: {number_text(smoothed)}", AFTER),
    )
    return Chart(title, Axis(f"{what}, by rank"), Axis("absolute maximum", "log"), marks, width=300, height=250)


def _sorted(maxima: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    values = np.sort(maxima.double().numpy())[::-1]
    return thin_out(np.arange(1, len(values) + 1), values, 300)


def _points(curve: AlphaCurve) -> tuple[list[float], list[float]]:
    return list(curve.alphas), [100 * error for error in curve.errors]
