"""The alpha panel's sentences: what its numbers are, where an alpha comes from, what is missing."""

from __future__ import annotations

import html

from workbench.bench.alpha_book import AlphaBook, without
from workbench.bench.bench import Bench
from workbench.bench.state import BenchState, group_name, is_kept, split_group
from workbench.quantization.alpha_search import AlphaSearch
from workbench.recipe import SmoothQuant
from workbench.ui.alpha_charts import error_text


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


def row_note(state: BenchState, layer: int, group: str) -> str:
    """Where a group's alpha comes from, or that the recipe keeps its linear layer out of quantization."""
    how, name = state.smoothing or SmoothQuant(), group_name(layer, group)
    note = "its own" if name in how.alpha_by_group else "as all groups"
    if how.alpha_of(layer, group) is None:
        note = "not smoothed"
    if is_kept(state.recipe, layer, group):
        note = f"kept in {state.recipe.dtype}"
    return f"{note}, locked" if name in state.locked else note


def row_error(state: BenchState, book: AlphaBook | None, layer: int, group: str) -> str:
    """What is known of a group's error, in words; empty where there is nothing that computes errors."""
    if book is None:
        return ""
    if is_kept(state.recipe, layer, group):
        return "0 %: no integers"
    how = state.smoothing or SmoothQuant()
    plain = book.known_error(layer, group, without(how, group))
    return error_text(book.known_error(layer, group, how), book.known_best(layer, group, how), plain)


def why_no_picture(state: BenchState, name: str, *, computing: bool) -> str:
    """Why the charts of a group (``layers.12.down``) are empty, in words."""
    if state.search is None:
        return what_is_missing(state)
    if is_kept(state.recipe, *split_group(name)):
        return about_kept(state, name)
    return f"{name}: {'computing its error' if computing else 'its error could not be computed'}"


def about_kept(state: BenchState, name: str) -> str:
    """Why a group that the recipe keeps has no charts."""
    return f"{name} is kept in {state.recipe.dtype} by the recipe: no integers, so no alpha changes its error"


def what_is_missing(state: BenchState) -> str:
    """Why there are no errors to show, and what to do."""
    if state.calibration is not None:
        return f"the calibration ({state.calibration.name}) kept no held-out rows: calibrate with samples for tuning"
    if isinstance(state, Bench):
        return "nothing is calibrated yet: press Start for a quick look, or calibrate with bench.ranges()"
    return "there is nothing to tune on: give AlphaPanel(search) an AlphaSearch, or assign one to state.search"
