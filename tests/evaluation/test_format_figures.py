"""The documentation's table of formats: its form on few models, its requirements in full (slow)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.tolerances import TOLERANCE
from workbench.evaluation import format_figures as module
from workbench.evaluation.format_figures import FormatFigures, FormatOptions, format_figures


@pytest.fixture(scope="module")
def few() -> FormatFigures:
    return format_figures(FormatOptions(("internlm2",), (3, 12), greedy_tokens=4, embedded=False))


def test_every_combination_is_measured(few: FormatFigures) -> None:
    table = few.equality
    assert len(table) == 2 * 2 * 3
    assert set(table["attention"]) == {"GQA 3", "MHA"}
    assert table["relative_l2"].max() <= TOLERANCE[torch.float32]["model"]
    assert table["relative_l2"].min() > 0
    half = table["precision"] != "float32"
    assert table["relative_l2_bfloat16"].notna().tolist() == half.tolist()
    assert table["relative_l2_bfloat16"][half].min() > table["relative_l2"].max()
    assert table["same_tokens"].all()


def test_one_miss_fails_the_run(few: FormatFigures) -> None:
    assert few
    assert not replace(few, equality=few.equality.assign(passed=False))
    row = {"format": "llama", "kv_heads": 3, "relative_l2": 1.0, "same_tokens": False, "same_in_all": True}
    missed = pd.DataFrame([{**row, "passed": False}])
    assert not replace(few, embedded=missed)
    assert "| Llama | 3 | 1.0e+00 | differ | identical | NO |" in replace(few, embedded=missed).to_markdown("x")


@pytest.mark.parametrize(("limit", "value"), [("FLOAT32_LIMIT", 1e-9), ("BFLOAT16_LIMIT", 1e-6)])
def test_requirements(monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(module, limit, value)
    assert not format_figures(FormatOptions(("llama",), (12,), greedy_tokens=1, embedded=False))


def test_command_writes_both_files_and_its_own_line(
    few: FormatFigures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "format_figures", lambda **_: few)
    output = tmp_path / "fragment.md"
    assert module.main(["--output", str(output)]) == 0
    text = output.read_text()
    assert "| InternLM2 | yes | GQA 3 | " in text
    assert f"`python -m workbench.evaluation.format_figures --output {output}`" in text
    assert json.loads(output.with_suffix(".json").read_text())["equality"][0]["passed"] is True


@pytest.mark.slow
def test_requirements_hold() -> None:
    figures = format_figures()
    assert figures
    assert len(figures.equality) == 4 * 2 * 4 * 3
    assert len(figures.embedded) == 4
