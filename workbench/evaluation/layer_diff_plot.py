"""The figure of a layer difference. Draws what it is given; computes no error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.evaluation.axis_ticks import set_ticks
from workbench.evaluation.palette import BROKEN, EDGE, ERROR_MAP, EXACT, GRID, PRECISION, SITE
from workbench.evaluation.tap_error import DIVERGENCE

if TYPE_CHECKING:
    from workbench.evaluation.layer_diff import LayerDiff


def plot_layer_diff(diff: LayerDiff) -> Figure:
    """Relative L2 error over depth above, layers and sites as a heat map below; both share the axis of layers."""
    figure = Figure(figsize=(11, 7.2), layout="constrained", facecolor="white")
    cells = figure.subplots(2, 2, sharex="col", width_ratios=[1, 0.19], height_ratios=[1.1, 1])
    (lines, key), (heat, scale) = cells
    for margin in (key, scale):
        margin.set_axis_off()
    grid = diff.grid()
    _draw_lines(lines, key, diff, grid)
    _draw_heat(figure, heat, scale, grid)
    lines.set_title(_headline(diff), loc="left", fontsize=13, fontweight="bold", pad=44)
    lines.text(0, 1.03, _summary(diff), transform=lines.transAxes, fontsize=10, va="bottom")
    return figure


def _headline(diff: LayerDiff) -> str:
    return f"{diff.options.candidate_name} ({diff.precision}) against {diff.options.reference_name}"


def _summary(diff: LayerDiff) -> str:
    summary = diff.summary
    return (
        f"{diff.tokens} tokens. Logits: KL {summary.kl:.2g} nats, same first choice {summary.top1:.1%}, perplexity "
        f"{summary.candidate_perplexity:.2f} against {summary.reference_perplexity:.2f}.\n"
        f"First divergence: {diff.first_divergence or 'none'}."
    )


def _draw_lines(axes: Axes, key: Axes, diff: LayerDiff, grid: pd.DataFrame) -> None:
    layers = grid.columns.to_numpy(dtype=int)
    for site, (color, marker) in SITE.items():
        if site in grid.index:
            values = grid.loc[site].to_numpy(dtype=float)
            axes.plot(layers, _positive(values), color=color, marker=marker, markersize=4, linewidth=1.4, label=site)
    precision = diff.precision
    label = f"divergence limit\n({precision})"
    axes.axhline(DIVERGENCE[precision], color=PRECISION[precision], linestyle="--", linewidth=1.6, label=label)
    axes.set_yscale("log")
    set_ticks(axes.yaxis)
    axes.set_ylabel("relative L2 error")
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    key.legend(*axes.get_legend_handles_labels(), loc="upper left", frameon=False, fontsize=9, borderaxespad=0)


def _draw_heat(figure: Figure, axes: Axes, scale: Axes, grid: pd.DataFrame) -> None:
    values = grid.to_numpy(dtype=float)
    values = np.where(values == 0, np.nan, np.where(np.isnan(values), np.inf, values))
    colors = colormaps[ERROR_MAP].with_extremes(bad=EXACT, over=BROKEN)
    image = axes.imshow(values, aspect="auto", cmap=colors, norm=_log_norm(values), interpolation="nearest")
    axes.set_yticks(range(len(grid.index)), list(grid.index), fontsize=9)
    notes = {"grey: no error at all": np.isnan(values).any(), "red: not finite": np.isinf(values).any()}
    axes.set_xlabel("; ".join(["layer", *(note for note, applies in notes.items() if applies)]))
    axes.tick_params(length=2, color=EDGE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, cax=scale.inset_axes((0.0, 0.0, 0.13, 1.0)), extend="neither")
    bar.set_label("relative L2 error", fontsize=9)
    set_ticks(bar.ax.yaxis)
    bar.ax.tick_params(which="both", labelsize=8)


def _positive(values: np.ndarray) -> np.ndarray:
    """Errors as a log axis can show them: an exact zero, and what is not finite, become gaps."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _log_norm(values: np.ndarray) -> LogNorm:
    """From the smallest to the largest error; a range of its own when there is no error at all."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (1e-8, 1e-7)
    return LogNorm(low, high if high > low else low * 10)
