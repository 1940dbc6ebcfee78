"""Sentences and the table of bytes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.bench.kv_outliers import OutOfLine
from workbench.bench.state import BenchState
from workbench.evaluation.kv_table import KVMemory
from workbench.recipe import Int8KVCache, Recipe
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


def outlier(**others):
    values = {"error": 0.16, "head": 8, "head_error": 1.0, "median": 0.04, "calibrated": 8.25, "stored": 8.25} | others
    return OutOfLine(1, **values)


def test_a_layer_that_is_out_of_line_is_named_with_its_cause_and_what_mends_it():
    frame = pd.DataFrame({"layer": [0, 1], "error_per_head": [0.01, 0.16], "error_per_tensor": [0.05, 0.97]})
    how = Int8KVCache("per_head")
    assert about_outliers([], frame, how) == ""
    text = about_outliers([outlier(stored=405.4, mended=0.07)], frame, how)
    assert 'class="wb-warning"' in text
    assert "Layer 1 is far out of line:</b> attention's output errs by 16 %, that of KV head 8 by 100 %" in text
    assert "makes the largest V there <b>405</b>; calibrated: 8.25" in text
    assert "alpha 0, with which it errs by 7 %" in text
    assert "bench.set_alpha(0, &quot;layers.1.o&quot;)" in text
    assert "with which" not in about_outliers([outlier(stored=405.4)], frame, how)
    assert "Take o out of the groups" in about_outliers([outlier(stored=405.4, mended=0.15)], frame, how)


def test_a_layer_that_smoothing_did_not_spoil_gets_other_advice():
    frame = pd.DataFrame({"layer": [0, 1], "error_per_head": [0.01, 0.16], "error_per_tensor": [0.05, 0.97]})
    per_tensor = about_outliers([outlier(error=0.97)], frame, Int8KVCache("per_tensor"))
    assert "Smoothing" not in per_tensor
    assert "With the other choice of scales it errs by 16 %" in per_tensor
    assert "the other choice" not in about_outliers([outlier()], frame, Int8KVCache("per_head"))
    assert "2 more layers" in about_outliers([outlier()] * 5, frame, Int8KVCache("per_head"))


def test_what_is_missing_without_a_bench():
    assert "KVScalesPanel(study)" in what_is_missing(BenchState())
