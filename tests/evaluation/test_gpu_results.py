"""Lines, tables and figures of a GPU benchmark, of made-up times."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from figure_texts import faults, texts_in

import workbench
from workbench.errors import WorkbenchError
from workbench.evaluation import gpu_results
from workbench.evaluation.gpu_markdown import markdown
from workbench.evaluation.gpu_results import DECODE, Conditions, GpuBenchmarkResult, GpuSpeed, code_checksum, in_order
from workbench.evaluation.gpu_roofline import plot_roofline

CONDITIONS = Conditions("small", {"eos": (2, 3)}, 128, "A GPU", {"torch": "2.99"}, "abc")


def _speed(mode: str, batch: int, context: int, task: str = "decode") -> GpuSpeed:
    return GpuSpeed(mode, batch, context, 2.0 + batch, 500.0, 10**9, 0.5, 1e10 * batch, 3 * 10**9, task)


SPEEDS = tuple(
    _speed(mode, batch, context) for mode in ("int4", "hf eager") for context in (128, 2048) for batch in (1, 8)
)
RESULT = GpuBenchmarkResult(
    CONDITIONS,
    {"steps": 128},
    3e12,
    (*SPEEDS[:3], _speed("int4", 2, 64, "prefill"), *SPEEDS[4:]),
    ("int4 batch 8 context 2048: does not fit the device's memory",),
    "2026-11-30",
    90.0,
)


def test_a_result_comes_back_from_json() -> None:
    again = GpuBenchmarkResult.from_dict(json.loads(json.dumps(RESULT.to_dict())))
    assert (again.speeds, again.skipped, again.date) == (RESULT.speeds, RESULT.skipped, RESULT.date)
    assert not again.conditions.differences(CONDITIONS)  # tuples have become lists
    assert again.conditions.differences(replace(CONDITIONS, gpu="B", code="x")) == ["gpu", "code"]
    assert again.cases() == {speed.label for speed in RESULT.speeds} | {"int4 batch 8 context 2048"}


@pytest.mark.parametrize("content", [{}, {"speeds": [{}]}, [], None, RESULT.to_dict() | {"speeds": [{"mode": "int4"}]}])
def test_what_is_no_result_is_refused(content: object) -> None:
    with pytest.raises(
        WorkbenchError, match=r"this is no result of a GPU benchmark \(.*; begin anew, without --resume"
    ):
        GpuBenchmarkResult.from_dict(content)


def test_lines_are_in_the_order_of_tables() -> None:
    assert in_order(reversed(RESULT.speeds), ("int4", "hf eager")) == (*SPEEDS[:3], RESULT.speeds[3], *SPEEDS[4:])


def test_the_code_that_is_timed_has_a_checksum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    untuned = code_checksum()
    assert untuned == code_checksum()
    (tmp_path / "tiles.json").write_text("{}")
    assert code_checksum() != untuned
    monkeypatch.setattr(gpu_results, "TIMED_CODE", ("model",))
    assert code_checksum() != untuned


def test_the_code_that_times_is_a_part_of_the_checksum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(workbench.__file__).parent
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for part in gpu_results.TIMED_CODE:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        if (root / part).is_dir():
            shutil.copytree(root / part, tmp_path / part)
        else:
            shutil.copy(root / part, tmp_path / part)
    before = code_checksum()
    monkeypatch.setattr(workbench, "__file__", str(tmp_path / "__init__.py"))
    assert code_checksum() == before
    for name in ("gpu_benchmark", "gpu_reference", "gpu_clock"):
        file = tmp_path / "evaluation" / f"{name}.py"
        file.write_text(file.read_text() + "# longer")
        assert code_checksum() != before
        before = code_checksum()


def test_tables_have_every_case() -> None:
    text = markdown(RESULT, "workbench benchmark --preset small")
    assert text.startswith(
        "`workbench benchmark --preset small`\n\n2026-11-30; A GPU; torch 2.99. A copy of 1 GiB moved 3.00"
    )
    assert "1.5 minutes in all." in text
    rows = [line for line in text.splitlines() if "| int4 " in line]
    assert rows == [
        "| 128 | int4 | 3.00 / 10.00 | 500 / 500 | 1.0 / 1.0 | 50 % / 50 % | 3.0 / 3.0 |",
        "| 2048 | int4 | 3.00 / does not fit | 500 / - | 1.0 / - | 50 % / - | 3.0 / - |",
        "| int4 | 4.00 | 500 | 5 |",
    ]
    assert (
        "| context | mode | ms a step, batch 1 / 8 | tokens/s | GB moved | share of the bandwidth | peak GB |" in text
    )
    assert "Not run: int4 batch 8 context 2048: does not fit" in text
    lone = replace(RESULT, speeds=SPEEDS[:1], skipped=())
    assert "Reading prompts" not in markdown(lone, "x")
    assert "not run" in markdown(replace(RESULT, skipped=()), "x")


def test_every_place_of_a_table_is_filled() -> None:
    read = (_speed("int4", 2, 64, "prefill"), _speed("w8a8", 3, 64, "prefill"))
    rows = markdown(replace(RESULT, speeds=(*SPEEDS[:4], SPEEDS[5], *read)), "x").splitlines()
    assert "| 128 | hf eager | not run / 10.00 | - / 500 | - / 1.0 | - / 50 % | - / 3.0 |" in rows
    assert "| 2048 | hf eager | not run / not run | - / - | - / - | - / - | - / - |" in rows
    assert "| w8a8 | not run | - | - | 5.00 | 500 | 6 |" in rows


def test_steps_that_are_not_the_usual_number_are_said() -> None:
    speeds = tuple(replace(speed, steps=8 if speed.mode == "hf eager" else 128) for speed in SPEEDS)
    told = markdown(replace(RESULT, speeds=speeds), "x")
    assert "| 128 | hf eager (8 steps) | " in told
    assert "| int4 | " in told
    assert "128 steps a case where nothing else is said;" in told


def test_a_result_without_times_has_the_columns_of_others() -> None:
    assert list(replace(RESULT, speeds=()).frame.columns) == list(RESULT.frame.columns)


def test_a_file_from_before_steps_were_kept_is_read() -> None:
    content = json.loads(json.dumps(RESULT.to_dict()))
    for speed in content["speeds"]:
        del speed["steps"]
    assert GpuBenchmarkResult.from_dict(content).speeds == RESULT.speeds


def test_the_roofline_has_every_decoding_case_and_the_roof(tmp_path: Path) -> None:
    figure = plot_roofline(RESULT)
    (axes,) = figure.axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == 7
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "int4", "hf eager", "bandwidth of a copy: 3.00 TB/s"
    ]  # fmt: skip
    assert sorted(texts_in(axes)) == sorted({str(speed.batch) for speed in RESULT.speeds if speed.task == DECODE})
    assert faults(figure) == []
    figure.savefig(tmp_path / "roofline.png")
    plot_roofline(replace(RESULT, speeds=(RESULT.speeds[3],)))  # prefill alone: nothing to draw
