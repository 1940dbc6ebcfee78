"""The charts of a layer difference: error over depth, one tap's values, and the errors of a window's tokens.

Arranges what :class:`LayerDiff` has computed.
"""

from __future__ import annotations

import numpy as np

from workbench.evaluation.layer_diff import LayerDiff
from workbench.evaluation.palette import PRECISION, SITE
from workbench.evaluation.tap_error import DIVERGENCE
from workbench.model.taps import layer_tap, split_tap
from workbench.ui.chart import Axis, Bars, Chart, Line, Points, Rule
from workbench.ui.token_marks import visible

# Two halves, or the chart of tokens and their table, stand side by side in a window of 1200 px.
WIDE, HALF, TOKENS_WIDTH = 1010, 500, 590


def depth_chart(diff: LayerDiff) -> Chart:
    """Relative L2 error over the layers, a line per site; dashed what the precision explains."""
    grid = diff.grid()
    layers = grid.columns.to_numpy(dtype=int)
    lines = []
    for site in _drawn_sites(diff):
        color, marker = SITE[site]
        values = grid.loc[site].to_numpy(dtype=float)
        texts = [
            f"{layer_tap(int(layer), site)}\nrelative L2 error {value:.3g}"
            for layer, value in zip(layers, values, strict=True)
        ]
        lines.append(Line(layers, values, site, color, marker=marker, texts=texts))
    limit = DIVERGENCE[diff.precision]
    rules = [Rule("y", limit, f"divergence limit of {diff.precision}: {limit:g}", PRECISION[diff.precision])]
    layer, site = split_tap(diff.first_divergence) if diff.first_divergence else (None, "")
    if layer is not None:
        rules.append(Rule("x", layer, f"first divergence: {site}"))
    return Chart(
        "Error over depth",
        Axis("layer"),
        Axis("relative L2 error", "log"),
        [*lines, *rules],
        width=WIDE,
        height=290,
    )


def place_in_depth(diff: LayerDiff, tap: str) -> list[int]:
    """``[mark, index]`` of a tap in :func:`depth_chart`; ``[-1, -1]`` when it has no place there."""
    layer, site = split_tap(tap)
    grid = diff.grid()
    sites = _drawn_sites(diff)
    layers = [int(each) for each in grid.columns]
    return [sites.index(site), layers.index(layer)] if site in sites and layer in layers else [-1, -1]


def tap_in_depth(diff: LayerDiff, place: list[int]) -> str | None:
    """The tap that a point of :func:`depth_chart` stands for."""
    mark, index = place
    sites = _drawn_sites(diff)
    return layer_tap(int(diff.grid().columns[index]), sites[mark]) if 0 <= mark < len(sites) else None


def _drawn_sites(diff: LayerDiff) -> list[str]:
    known = set(diff.grid().index)
    return [site for site in SITE if site in known]


def value_chart(diff: LayerDiff, tap: str) -> Chart:
    """The candidate's values over the reference's: equal ones lie on the diagonal.

    Raises:
        WorkbenchError: no such tap was compared.
    """
    reference, candidate = (values.numpy() for values in diff.samples(tap))
    lost = int((~(np.isfinite(reference) & np.isfinite(candidate))).sum())
    title = f"{tap}: {len(reference):,} of its values" + (f", {lost:,} not finite" if lost else "")
    return Chart(
        title,
        Axis(diff.options.reference_name),
        Axis(f"{diff.options.candidate_name} ({diff.precision})"),
        [Points(reference, candidate, colors=PRECISION[diff.precision])],
        width=HALF,
        diagonal=True,
    )


def error_chart(diff: LayerDiff, tap: str) -> Chart:
    """The histogram of the differences of those values.

    Raises:
        WorkbenchError: no such tap was compared.
    """
    edges, counts = diff.error_histogram(tap)
    bars = (
        [
            Bars(
                (edges[:-1] + edges[1:]) / 2,
                counts,
                colors=PRECISION[diff.precision],
                width=float(edges[1] - edges[0]),
                texts=[
                    f"{low:.3g} to {high:.3g}\n{count:,} values"
                    for low, high, count in zip(edges, edges[1:], counts, strict=False)
                ],
            )
        ]
        if len(counts)
        else []
    )
    return Chart(
        "Their errors" if bars else "No error is finite",
        Axis(f"{diff.options.candidate_name} minus {diff.options.reference_name}"),
        Axis("values", "log"),
        bars,
        width=HALF,
    )


def token_chart(diff: LayerDiff, tap: str, window: int) -> Chart:
    """A tap's error at every token of a window, with the tokens' texts as tooltips.

    Raises:
        WorkbenchError: no such tap was compared.
    """
    errors = diff.per_token.of(tap)[window].numpy()
    texts = diff.per_token.window_texts(window)
    positions = np.arange(len(errors))
    line = Line(
        positions,
        errors,
        color=PRECISION[diff.precision],
        texts=[
            f"token {position}: {visible(text)}\nrelative L2 error {error:.3g}"
            for position, text, error in zip(positions, texts, errors, strict=True)
        ],
    )
    return Chart(
        f"{tap}: error of every token of window {window}",
        Axis("position in the window [tokens]"),
        Axis("relative L2 error", "log"),
        [line],
        width=TOKENS_WIDTH,
    )
