"""The colours of every plot: one per precision and one per site, told apart by colour-blind readers too.

Precisions after the palette of Okabe and Ito (2008), sites and parts of the KV cache after Paul Tol's muted one, so
that no colour means both. The same precision has the same colour wherever it appears.
"""

from __future__ import annotations

PRECISION: dict[str, str] = {
    "float64": "#000000",
    "float32": "#56B4E9",
    "float16": "#0072B2",
    "bfloat16": "#009E73",
    "int8": "#D55E00",
    "smoothquant": "#CC79A7",
    "int4": "#E69F00",
    "int8 KV cache": "#7F7F7F",
}

# The sites of a line plot: one colour and one marker each, so that neither has to carry the meaning alone.
SITE: dict[str, tuple[str, str]] = {
    "residual_mid": ("#4D4D4D", "o"),
    "attention.qkv": ("#332288", "s"),
    "attention.o": ("#44AA99", "D"),
    "mlp.gate_up": ("#999933", "^"),
    "mlp.down": ("#882255", "v"),
}

# Keys and values of the KV cache, with a marker each.
KV: dict[str, tuple[str, str]] = {"key": ("#332288", "o"), "value": ("#999933", "s")}

# Two states of the same thing: as it is, and as it would be (after smoothing, another data set, another recipe).
BEFORE, AFTER = "#0072B2", "#D55E00"
# What a person has chosen now, and the best that a search found.
CHOSEN, BEST = "#d81b60", "#009E73"

ERROR_MAP = "viridis"
# Ratios: purple below 1, orange above; both ends are told apart by colour-blind readers.
RATIO_MAP = "PuOr_r"
RATIO_MEANING = "purple: smaller, white: {center:g}, orange: larger"
GRID = "#d0d0d0"
EDGE = "#555555"
# Cells without a place on the scale: no error at all, an error that is not finite, nothing known.
EXACT = "#c8c8c8"
BROKEN = "#e00000"
MISSING = "transparent"
