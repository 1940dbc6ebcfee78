"""The KV panel's sentences and its table of bytes. Markup only."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import pandas as pd

from workbench.bench.bench import QUICK_LOOK, Bench
from workbench.bench.kv_book import KVBook
from workbench.bench.kv_outliers import MOST_EXPLAINED, OutOfLine
from workbench.bench.state import BenchState, is_kept
from workbench.evaluation.kv_table import KVMemory
from workbench.recipe import Int8KVCache, Recipe, SmoothQuant
from workbench.ui.kv_charts import GRANULARITIES, LayerPicture, clipped_text, name_of, percent

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def about_choice(recipe: Recipe, how: Int8KVCache, *, can_clip: bool) -> str:
    """What the recipe stores, what is shown, and what cannot be chosen."""
    no_clip = (
        "This calibration kept no histograms: scales can only cover every magnitude. Calibrate again for percentiles."
    )
    note = "" if can_clip else _line(no_clip)
    if recipe.kv_cache is not None:
        return note
    return note + _line(
        f"The recipe stores keys and values in {recipe.dtype}. What is shown is what INT8 would cost, "
        f"{name_of(how)}; moving the slider makes the KV cache INT8."
    )


def memory_table(memory: KVMemory | None, *, int8: bool) -> str:
    """Bytes per token and of a full cache, dense and in INT8; what the recipe chose is bold."""
    if memory is None:
        return ""
    dense, integers = memory.dense_bytes_per_token, memory.int8_bytes_per_token
    rows = [
        ("one token, all layers", dense, integers),
        (f"a full cache: {memory.tokens:,} tokens", memory.dense_bytes, memory.int8_bytes),
    ]
    heads = [memory.dtype, "INT8", "saved"]
    if memory.saved_bytes_per_token <= 0:
        heads = heads[:2]
    head = "".join(f'<th scope="col">{each}</th>' for each in ("KV cache", *heads))
    body = ""
    for name, plain, small in rows:
        cells = [(bytes_text(plain), not int8), (bytes_text(small), int8), (bytes_text(plain - small), False)]
        written = (f"<b>{text}</b>" if bold else text for text, bold in cells[: len(heads)])
        body += f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{each}</td>" for each in written) + "</tr>"
    return f'<table class="wb-table"><tr>{head}</tr>{body}</table>'


def memory_note(recipe: Recipe) -> str:
    """What a full cache is."""
    build = recipe.build
    return (
        f'<div class="wb-about">A full cache holds {build.max_batch_size} sequences of {build.max_seq_len:,} tokens: '
        "the recipe's limits. Per head or per tensor, scales belong to the weights and take no bytes per token.</div>"
    )


def about_layer(picture: LayerPicture, book: KVBook, smoothing: SmoothQuant | None) -> str:
    """The shown layer in one sentence, and whether smoothing counts."""
    chosen, how = picture.chosen, picture.how
    best = ""
    curve = picture.curves.get(how.granularity)
    if curve is not None and len(curve.errors) > 1:
        percentile, least = curve.best
        best = f"; least, of what was tried: {percent(least)} at {percentile:g} %"
    text = (
        f"<b>Layer {picture.layer}</b>, INT8 {name_of(how)}: attention's "
        f"output errs by <b>{percent(chosen.relative_l2)}</b>{best}. Clipped: {clipped_text(chosen)}."
    )
    if book.divides(picture.layer, smoothing):
        text += " Its values are divided as the recipe's smoothing of o divides them."
    elif smoothing is not None and smoothing.alpha_of(picture.layer, "o") is not None:
        text += " Its values are judged without the recipe's smoothing of o: there are no held-out rows."
    return _line(text)


def about_layers(frame: pd.DataFrame) -> str:
    """Both granularities over all layers, where all are known."""
    parts = []
    for name, words in GRANULARITIES.items():
        errors = frame[f"error_{name}"]
        if len(errors) and errors.notna().all():
            worst = int(frame["layer"].iloc[int(errors.to_numpy().argmax())])
            parts.append(f"{words}: median {percent(errors.median())}, worst {percent(errors.max())} in layer {worst}")
    return _line("All layers, " + "; ".join(parts) + ".") if parts else ""


def about_outliers(found: Sequence[OutOfLine], frame: pd.DataFrame, how: Int8KVCache, state: BenchState) -> str:
    """Which layers are out of line, why, and what mends them as far as that is known; empty where none is.

    Args:
        found: the worst first.
        frame: every layer's error with either granularity, as :func:`workbench.bench.kv_book.kv_frame` gives it.
        how: the choice that spoils them.
        state: its recipe and locks say what can be done.
    """
    if not found:
        return ""
    other = next(name for name in GRANULARITIES if name != how.granularity)
    told = []
    for one in found[:MOST_EXPLAINED]:
        elsewhere = float(frame.loc[frame["layer"] == one.layer, f"error_{other}"].iloc[0])
        better = elsewhere < one.error / 2 or (math.isnan(one.error) and math.isfinite(elsewhere))
        advice = f"Stored {GRANULARITIES[other]} it errs by {percent(elsewhere)}. " if better else ""
        told.append(_what(one) + _why(one, advice) + _remedy(one, state))
    rest = sorted(one.layer for one in found[MOST_EXPLAINED:])
    more = f"<br>Also out of line: {', '.join(map(str, rest))}." if rest else ""
    return f'<div class="wb-warning" role="status">{"<br>".join(told)}{more}</div>'


def _what(one: OutOfLine) -> str:
    others = "" if math.isnan(one.median) else f"; the median of the other layers is {percent(one.median)}"
    if math.isnan(one.head_error):
        return f"<b>INT8 spoils layer {one.layer}:</b> the output of KV head {one.head} is NaN{others}. "
    return (
        f"<b>INT8 spoils layer {one.layer}:</b> attention's output errs by {percent(one.error)}, that of KV head "
        f"{one.head} by {percent(one.head_error)}{others}. "
    )


def _why(one: OutOfLine, advice: str) -> str:
    """The cause, where it is known; ``advice`` is for a layer that smoothing did not spoil."""
    if one.divided and one.plain is None:
        return ""  # it is being computed
    if one.plain is None:
        return f"{advice}Choose the layer to see its error by percentile."
    without = f"{percent(one.plain.error)}, its worst head by {percent(one.plain.head_error)}"
    if one.by_smoothing:
        return f"Smoothing of o is the cause: without it the layer errs by {without}. "
    return (
        f"Smoothing of o is not the main cause: without it the layer errs by {without}. "
        f"{advice}Choose the layer to see its error by percentile."
    )


def _remedy(one: OutOfLine, state: BenchState) -> str:
    """What mends a layer that smoothing spoiled; empty before that is computed, and where nothing that was tried does.

    Where the recipe keeps o out of quantization, no smoothing costs o anything.
    """
    remedy = one.remedy if one.by_smoothing else None
    if remedy is None:
        return ""
    then = f"{percent(remedy.error)}, its worst head by {percent(remedy.head_error)}"
    costs = (one.output_error, remedy.output_error)
    if None not in costs and not is_kept(state.recipe, one.layer, "o"):
        before, after = (percent(cost) for cost in costs if cost is not None)
        then += f"; o's own output, quantized, by {after} instead of {before}"
    tried = ", ".join(f"{trial.alpha:g}" for trial in one.tried)
    if remedy.alpha is None:
        return (
            f"No alpha for {one.group} alone mends it (tried: {tried}). With o taken out of the groups that the "
            f"recipe smooths, attention's output errs by {then}. That changes every layer: judge it by the whole model."
        )
    how = f"<code>bench.set_alpha({remedy.alpha:g}, &quot;{one.group}&quot;)</code>, or its slider in the alpha panel."
    if one.group in state.locked:
        how = f"It is locked: <code>bench.unlock(&quot;{one.group}&quot;)</code> first. Then {how}"
    return (
        f"Of alphas {tried} for {one.group}, <b>{remedy.alpha:g}</b> mends it best: attention's output then "
        f"errs by {then}. {how}"
    )


def about_errors(windows: int, length: int) -> str:
    """What the errors are."""
    return (
        '<div class="wb-about">Error: relative L2 distance between attention\'s output with the INT8 cache and with an '
        f"exact one, in float32, on {windows} held-out windows of {length} tokens. It is the error of one layer alone; "
        "how layers add up, the whole model says: bench.layer_diff().</div>"
    )


def what_is_missing(state: BenchState) -> str:
    """Why there is nothing to show, or no error, and what to do; empty where nothing is missing."""
    if state.kv_study is not None:
        return ""
    if state.calibration is None and isinstance(state, Bench):
        quick = f"{QUICK_LOOK.samples} windows of {QUICK_LOOK.length} tokens"
        return _line(
            f"<b>Nothing is calibrated yet.</b> A quick look at {quick} comes first; bench.ranges() offers more."
        )
    if state.calibration is None:
        return _line("<b>Nothing to show:</b> give the panel a study, <code>KVScalesPanel(study)</code>.")
    if isinstance(state, Bench):
        return _line("<b>No errors yet:</b> what attention reads is collected on the built-in text first.")
    return _line("<b>No errors to show:</b> give the panel a study, or assign one to <code>state.kv_study</code>.")


def title(state: BenchState) -> str:
    """The panel's heading."""
    seen = "" if state.calibration is None else f", calibrated with {html.escape(state.calibration.name)}"
    return _line(f"<b>Scales of an INT8 KV cache</b>{seen}")


def in_short(recipe: Recipe, layer: int, error: float | None) -> str:
    """Choice and error in a few words, without markup."""
    stored = "not quantized" if recipe.kv_cache is None else f"INT8 {name_of(recipe.kv_cache)}"
    return f"{stored}; " + ("no errors yet" if error is None else f"layer {layer} errs by {percent(error)}")


def bytes_text(count: int) -> str:
    """Bytes as "1.51 GB"; decimal prefixes."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _line(text: str) -> str:
    return f'<div class="wb-line">{text}</div>'
