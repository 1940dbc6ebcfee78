"""The documentation's accuracy figures: their form on few tokens, their requirements in full (slow)."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from tests.tolerances import HF_FLOAT32_LOGITS
from workbench.evaluation import figures
from workbench.evaluation.figures import RANDOM_MODELS, AccuracyFigures, FigureOptions, accuracy_figures
from workbench.evaluation.perplexity import Perplexity


@pytest.fixture(scope="module")
def few(demo_model_dir) -> AccuracyFigures:
    return accuracy_figures(demo_model_dir, FigureOptions(windows=2, length=32, greedy_tokens=4, modes=("bfloat16",)))


def test_float32_is_hugging_face(few):
    table = few.equality.set_index("model")
    assert list(table.index) == ["embedded model", *(f"random, {name}" for name in RANDOM_MODELS)]
    assert table["relative_l2"].max() <= HF_FLOAT32_LOGITS
    assert table["same_tokens"].all()


def test_modes_are_judged_by_our_float32(few):
    table = few.perplexities.set_index("mode")
    assert list(table.index) == ["Hugging Face float32", "float32", "bfloat16"]
    assert table.loc["float32", "change_relative"] == 0
    assert table.loc["Hugging Face float32", "change_relative"] == pytest.approx(0, abs=1e-5)
    ratio = table.loc["bfloat16", "perplexity"] / table.loc["float32", "perplexity"]
    assert table.loc["bfloat16", "change_relative"] == pytest.approx(ratio - 1, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "change", "passed"),
    [
        ("bfloat16", 0.0049, True),
        ("bfloat16", 0.0051, False),
        ("float16", -0.0051, False),
        ("int8 weights, bfloat16", 0.0099, True),
        ("int8 weights, float16", 0.0101, False),
    ],
)
def test_requirements(mode, change, passed):
    nll = pd.Series([1.0, 2.0])
    row = figures._perplexity_row(
        mode, Perplexity(tuple(nll + pd.Series([change] * 2).map(math.log1p)), 9), Perplexity(tuple(nll), 9)
    )
    assert row["change_relative"] == pytest.approx(change)
    assert row["passed"] is passed


def test_one_miss_fails_the_run(few):
    passing = replace(few, perplexities=few.perplexities.assign(passed=True))
    assert passing
    assert not replace(passing, equality=few.equality.assign(passed=False))


def test_fragment_names_everything(few):
    text = few.to_markdown("python -m something")
    assert "| bfloat16 | " in text
    assert "| random, no bias, GQA | " in text
    assert "`python -m something`" in text
    assert few.context["text_sha256"] in text
    assert json.loads(json.dumps(few.to_dict()))["equality"][0]["passed"] is True


def test_command_writes_both_files_and_its_own_line(few, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "accuracy_figures", lambda *_args: replace(few, equality=few.equality[:0]))
    output = tmp_path / "fragment.md"
    code = figures.main(["--model_dir", "somewhere", "--output", str(output), "--windows", "3"])
    assert code == (0 if few.perplexities["passed"].all() else 1)
    assert f"--model_dir somewhere --output {output} --windows 3" in output.read_text()
    assert "perplexities" in json.loads(output.with_suffix(".json").read_text())


@pytest.mark.slow
def test_every_requirement_holds(demo_model_dir):
    full = accuracy_figures(demo_model_dir)
    assert full, full.to_markdown("")
