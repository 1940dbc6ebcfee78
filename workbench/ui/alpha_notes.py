"""The alpha panel's sentences: what its numbers are, where an alpha comes from, what is missing."""

from __future__ import annotations

import html

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState, group_name
from workbench.quantization.alpha_search import AlphaSearch
from workbench.recipe import SmoothQuant


def about_errors(search: AlphaSearch, *, can_judge: bool) -> str:
    """What the errors are, as HTML."""
    judge = "the button below judges by it." if can_judge else "judge recipes by it."
    return (
        '<div class="wb-about">Output error: relative L2 distance between what the quantized linear layer and the '
        f"exact one make of the same input, on {search.options.rows} held-out rows: text that the ranges did not come "
        f"from. Layers' errors are not worth the same to the model: its KL has the last word, and {judge}</div>"
    )


def about_recipe(state: BenchState) -> str:
    """That the recipe does not smooth, as HTML; empty where it does."""
    if state.smoothing is not None:
        return ""
    weights = state.recipe.weights
    now = f"quantizes weights as {weights.kind}" if weights is not None else "quantizes no weights"
    return (
        f'<div class="wb-line">The recipe {html.escape(now)}: nothing is smoothed yet. What is shown is what '
        "SmoothQuant would do; moving a slider makes the recipe SmoothQuant.</div>"
    )


def row_note(how: SmoothQuant, layer: int, group: str, *, locked: bool) -> str:
    """Where a group's alpha comes from."""
    note = "its own" if group_name(layer, group) in how.alpha_by_group else "as all groups"
    if how.alpha_of(layer, group) is None:
        note = "not smoothed"
    return f"{note}, locked" if locked else note


def what_is_missing(state: BenchState) -> str:
    """Why there are no errors to show, and what to do."""
    if state.calibration is not None:
        return f"the calibration ({state.calibration.name}) kept no held-out rows: calibrate with samples for tuning"
    if isinstance(state, Bench):
        return "nothing is calibrated yet: press Start for a quick look, or calibrate with bench.ranges()"
    return "there is nothing to tune on: give AlphaPanel(search) an AlphaSearch, or assign one to state.search"
