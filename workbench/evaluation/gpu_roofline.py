"""The figure of a GPU benchmark: work done a second over work done a byte. Draws what it is given; times nothing."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.evaluation.axis_ticks import set_ticks
from workbench.evaluation.figure_labels import Label, write_labels
from workbench.evaluation.gpu_results import DECODE, GpuBenchmarkResult, GpuSpeed

# One colour a precision, as everywhere; Hugging Face in greys.
COLORS = {
    "float16": "#4c78a8",
    "float16+kv8": "#9ecae9",
    "int8": "#f58518",
    "int4": "#e45756",
    "w8a8": "#54a24b",
    "w8a8+kv8": "#a1d99b",
    "hf eager": "#bab0ac",
    "hf compiled": "#79706e",
}
MARKERS = "osD^vP"


def plot_roofline(result: GpuBenchmarkResult) -> Figure:
    """Every decoding case as a point under the roof of the measured bandwidth; a colour a mode, a marker a context."""
    figure = Figure(figsize=(9, 6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    speeds = [speed for speed in result.speeds if speed.task == DECODE]
    contexts = sorted({speed.context for speed in speeds})
    for mode in dict.fromkeys(speed.mode for speed in speeds):
        for context, marker in zip(contexts, MARKERS, strict=False):
            points = [speed for speed in speeds if (speed.mode, speed.context) == (mode, context)]
            _draw(axes, points, marker, label=mode if context == contexts[0] else None)
    _draw_roof(axes, speeds, result.bandwidth)
    axes.set_xscale("log")
    axes.set_yscale("log")
    set_ticks(axes.xaxis)
    set_ticks(axes.yaxis)
    axes.set_xlabel("operations per byte that a step must read")
    axes.set_ylabel("TFLOP/s")
    axes.grid(visible=True, which="both", color="#e6e6e6", linewidth=0.6)
    if speeds:
        axes.legend(fontsize=8)
    shapes = ", ".join(f"{marker} {context}" for context, marker in zip(contexts, MARKERS, strict=False))
    axes.set_title(f"{result.model} on {result.gpu}: decoding (context: {shapes})", loc="left", fontsize=11)
    write_labels({axes: [_batch(speed) for speed in speeds]}, font_size=7)
    return figure


def _draw(axes: Axes, points: list[GpuSpeed], marker: str, label: str | None) -> None:
    if not points:
        return
    intensity, rate = zip(*map(_place, points), strict=True)
    axes.scatter(
        intensity, rate, color=COLORS.get(points[0].mode, "#000000"), marker=marker, s=42, label=label, zorder=3
    )


def _batch(speed: GpuSpeed) -> Label:
    return Label(str(speed.batch), *_place(speed), color=COLORS.get(speed.mode, ""))


def _place(speed: GpuSpeed) -> tuple[float, float]:
    """Operations per byte, and TFLOP/s."""
    return speed.flops / speed.moved_bytes, speed.flops / (speed.step_ms / 1e3) / 1e12


def _draw_roof(axes: Axes, speeds: list[GpuSpeed], bandwidth: float) -> None:
    if not speeds:
        return
    intensity = [speed.flops / speed.moved_bytes for speed in speeds]
    ends = np.array([min(intensity) / 1.5, max(intensity) * 1.5])
    label = f"bandwidth of a copy: {bandwidth / 1e12:.2f} TB/s"
    axes.plot(ends, ends * bandwidth / 1e12, color="#333333", linewidth=1.4, label=label)
