"""Sentences and the table of bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.bench.kv_outliers import OutOfLine, Trial
from workbench.bench.state import BenchState
from workbench.evaluation.kv_table import KVMemory
from workbench.recipe import Int8KVCache, Recipe, SmoothQuant
from workbench.ui.kv_notes import (
    about_choice,
    about_layers,
    about_outliers,
    bytes_text,
    in_short,
    memory_table,
    what_is_missing,
)

MEMORY = KVMemory("float16", 20_480, 69_120, 34_560)


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 bytes"), (69_120, "69.1 kB"), (2_500_000, "2.5 MB"), (1_415_577_600, "1.42 GB")]
)
def test_bytes(count, text):
    assert bytes_text(count) == text


def test_the_table_has_what_is_saved_and_marks_the_choice():
    table = memory_table(MEMORY, int8=True)
    assert "<td>69.1 kB</td><td><b>34.6 kB</b></td><td>34.6 kB</td>" in table
    assert "<td>1.42 GB</td><td><b>708 MB</b></td><td>708 MB</td>" in table
    assert "20,480 tokens" in table
    assert "<td><b>69.1 kB</b></td><td>34.6 kB</td>" in memory_table(MEMORY, int8=False)
    assert memory_table(None, int8=True) == ""


def test_the_choice_in_words():
    how = Int8KVCache("per_tensor", 99.9)
    assert about_choice(Recipe(kv_cache=how), how, can_clip=True) == ""
    assert "in bfloat16. What is shown is what INT8 would cost, per tensor at 99.9 %" in about_choice(
        Recipe(dtype="bfloat16"), how, can_clip=True
    )
    assert "no histograms" in about_choice(Recipe(kv_cache=how), how, can_clip=False)
    assert in_short(Recipe(kv_cache=how), 3, 0.0123) == "INT8 per tensor at 99.9 %; layer 3 errs by 1.23 %"
    assert in_short(Recipe(), 3, None) == "not quantized; no errors yet"


def test_all_layers_are_summed_up_when_all_are_known():
    frame = pd.DataFrame({"layer": [0, 1, 2], "error_per_head": [0.01, 0.03, 0.02], "error_per_tensor": [0.1] * 3})
    assert "per head: median 2 %, worst 3 % in layer 1; per tensor: median 10 %" in about_layers(frame)
    assert "per tensor" not in about_layers(frame.assign(error_per_tensor=[0.1, np.nan, 0.1]))
    assert about_layers(frame.assign(error_per_tensor=np.nan, error_per_head=np.nan)) == ""


FRAME = pd.DataFrame({"layer": [0, 1], "error_per_head": [0.01, 0.16], "error_per_tensor": [0.05, 0.97]})
HOW = Int8KVCache("per_head")
PLAIN = Trial(None, 0.056, 0.118, 0.03)
TRIED = (Trial(0.0, 0.072, 0.2, 0.0249), Trial(0.25, 0.061, 0.144, 0.0174), Trial(1.0, 0.16, 1.0, 0.0254))


def outlier(**others):
    """A layer whose values are smoothed."""
    values = {"error": 0.16, "head": 8, "head_error": 1.0, "median": 0.04, "divided": True, "output_error": 0.0181}
    return OutOfLine(1, **(values | others))


def said(*found, how=HOW, state=None):
    return about_outliers(found, FRAME, how, state or BenchState(recipe=Recipe(weights=SmoothQuant())))


def test_a_layer_that_is_out_of_line_is_named_with_its_cause_and_what_mends_it():
    assert said() == ""
    text = said(outlier(plain=PLAIN, tried=TRIED))
    assert 'class="wb-warning"' in text
    assert (
        "INT8 spoils layer 1:</b> attention's output errs by 16 %, that of KV head 8 by 100 %; the median of the other "
        "layers is 4 %. Smoothing of o is the cause: without it the layer errs by 5.6 %, its worst head by 11.8 %. "
        "Of alphas 0, 0.25, 1 for layers.1.o, <b>0.25</b> mends it best: attention's output then errs by "
        "6.1 %, its worst head by 14.4 %; o's own output, quantized, by 1.74 % instead of 1.81 %. "
        "<code>bench.set_alpha(0.25, &quot;layers.1.o&quot;)</code>, or its slider in the alpha panel." in text
    )


def test_nothing_is_said_of_cause_and_remedy_before_they_are_known():
    text = said(outlier())
    assert text.endswith("the median of the other layers is 4 %. </div>")
    text = said(outlier(plain=PLAIN))
    assert text.endswith("its worst head by 11.8 %. </div>")


def test_to_smooth_o_nowhere_is_advised_only_where_no_alpha_mends_the_layer():
    text = said(outlier(plain=PLAIN, tried=TRIED[-1:]))
    assert "set_alpha" not in text
    assert (
        "No alpha for layers.1.o alone mends it (tried: 1). With o taken out of the groups that the recipe smooths, "
        "attention's output errs by 5.6 %, its worst head by 11.8 %; o's own output, quantized, by 3 % instead of "
        "1.81 %. That changes every layer: judge it by the whole model." in text
    )


def test_a_locked_group_has_to_be_unlocked_first():
    state = BenchState(recipe=Recipe(weights=SmoothQuant()), locked=frozenset({"layers.1.o"}))
    text = said(outlier(plain=PLAIN, tried=TRIED), state=state)
    assert "It is locked: <code>bench.unlock(&quot;layers.1.o&quot;)</code> first. Then <code>bench.set_alpha" in text


def test_an_o_without_integers_has_no_error_of_its_own():
    state = BenchState(recipe=Recipe(weights=SmoothQuant(), keep=("layers.*.attention.o",)))
    assert "o's own output" not in said(outlier(plain=PLAIN, tried=TRIED), state=state)
    assert "o's own output" not in said(outlier(plain=PLAIN, tried=TRIED, output_error=None))


def test_a_layer_that_smoothing_did_not_spoil_gets_other_advice():
    plain = outlier(error=0.97, plain=Trial(None, 0.96, 1.0))
    text = said(plain, how=Int8KVCache("per_tensor"))
    assert "Smoothing of o is not the main cause: without it the layer errs by 96 %, its worst head by 100 %. " in text
    assert "Stored per head it errs by 16 %. Choose the layer to see its error by percentile." in text
    assert "alpha" not in text
    assert "groups" not in text
    assert "Stored" not in said(plain)  # per tensor is no better
    unsmoothed = said(outlier(divided=False))
    assert "Smoothing" not in unsmoothed
    assert "Choose the layer" in unsmoothed


def test_one_layer_has_no_others_and_what_is_no_number_is_called_so():
    assert "median" not in said(outlier(median=math.nan))
    text = said(outlier(error=math.nan, head_error=math.nan), how=Int8KVCache("per_tensor"))
    assert "INT8 spoils layer 1:</b> the output of KV head 8 is NaN; the median" in text
    assert "not known" not in text
    assert "Stored per head it errs by 16 %" in said(
        outlier(error=math.nan, head_error=math.nan, divided=False), how=Int8KVCache("per_tensor")
    )


def test_of_many_layers_the_worst_are_told_and_the_others_named():
    text = said(*[outlier()] * 3, replace(outlier(), layer=7), replace(outlier(), layer=2))
    assert text.count("INT8 spoils") == 3
    assert "Also out of line: 2, 7." in text


def test_what_is_missing_without_a_bench():
    assert "KVScalesPanel(study)" in what_is_missing(BenchState())
