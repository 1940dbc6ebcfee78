"""One tap close up: its values against the reference's, and the histogram of its errors."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workbench.evaluation.layer_diff import LayerDiff
from workbench.evaluation.palette import EDGE, GRID, PRECISION


def plot_tap(diff: LayerDiff, tap: str) -> Figure:
    """Scatter and error histogram of one tap's samples, side by side.

    Raises:
        WorkbenchError: no such tap was compared.
    """
    reference, candidate = (values.numpy() for values in diff.samples(tap))
    figure = Figure(figsize=(10.5, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    color = PRECISION[diff.precision]
    figure.suptitle(f"{tap}: {len(reference)} values of all windows", fontsize=11, fontweight="bold")
    _scatter(left, reference, candidate, color)
    left.set_xlabel(diff.options.reference_name)
    left.set_ylabel(f"{diff.options.candidate_name} ({diff.precision})")
    _histogram(right, candidate - reference, color)
    for axes in (left, right):
        axes.grid(visible=True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes at twice the screen's usual density."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _scatter(axes: Axes, reference: NDArray[np.float32], candidate: NDArray[np.float32], color: str) -> None:
    finite = np.isfinite(reference) & np.isfinite(candidate)
    axes.axline((0, 0), slope=1, color=EDGE, linewidth=0.8, linestyle="--", zorder=1)
    axes.scatter(reference[finite], candidate[finite], s=6, alpha=0.45, color=color, linewidths=0, zorder=2)
    axes.set_title(_missing("value against value (dashed: equal)", finite), fontsize=10)


def _histogram(axes: Axes, error: NDArray[np.float32], color: str) -> None:
    finite = np.isfinite(error)
    if finite.any():
        axes.hist(error[finite], bins=60, color=color)
        axes.set_yscale("log")
    axes.set_xlabel("error (ours minus reference)")
    axes.set_ylabel("values")
    spread = float(error[finite].std()) if finite.any() else 0.0
    axes.set_title(_missing(f"errors, standard deviation {spread:.2g}", finite), fontsize=10)


def _missing(title: str, finite: NDArray[np.bool_]) -> str:
    """The title, with how many values cannot be drawn."""
    lost = int((~finite).sum())
    return f"{title}; {lost} not finite" if lost else title
