"""``workbench summarize``: what a user sees, the gate, and refusals. Scores are tested with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.main import main
from workbench.evaluation import summarization
from workbench.quantization import calibration_data

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """Two articles."""
    path = tmp_path / "articles.jsonl"
    rows = [{"article": f"A bridge was built in {year}.", "highlights": "A bridge was built."} for year in (1900, 2000)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_both_sides_are_judged_on_the_same_articles(
    result_of: Result,
    tiny_checkpoint_dir: Path,
    tiny_model_dir: Path,
    articles: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--engine_dir", tiny_checkpoint_dir, "--hf_model_dir", tiny_model_dir, "--data_type", "fp32")
    how = ("--dataset", articles, "--output_len", "6", "--batch_size", "2", "--eval_ppl")
    result = result_of("summarize", "--test_trt_llm", "--test_hf", *words, *how)
    told = capsys.readouterr().out
    assert result["reason"].startswith("backend cpu: the fast CPU kernels, since ")
    assert result["reason"] in told
    assert result["articles"] == 2
    assert f"--max_ite 20: {articles} has 2 articles" in told
    assert result["max_input_length"] == 506
    assert "--max_input_length 923: the engine's limits leave 506" in told
    # One model in float32: the same tokens, so the same scores.
    for row in result["summaries"]:
        assert row["reference"] == "A bridge was built."
        assert row["workbench"] == row["hugging_face"] != ""
    assert result["difference"]["rouge1"] == {"mean": 0, "low": 0, "high": 0}
    assert "rouge1    0.00 (95 % interval 0.00 to 0.00): no difference" in told
    assert result["workbench"]["perplexity"] == pytest.approx(result["hugging_face"]["perplexity"], rel=1e-3)
    assert result["threshold"] is None


@pytest.mark.parametrize(("threshold", "verdict"), [("0", "passed"), ("15", "FAILED")])
def test_the_gate(
    result_of: Result,
    tiny_checkpoint_dir: Path,
    tiny_model_dir: Path,
    articles: Path,
    threshold: str,
    verdict: str,
) -> None:
    words = ("--engine_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--dataset", articles)
    gate = ("--check_accuracy", "--tensorrt_llm_rouge1_threshold", threshold, "--output_len", "3", "--max_ite", "1")
    result = result_of("summarize", "--test_trt_llm", *words, *gate, exit_code=0 if verdict == "passed" else 1)
    assert result["threshold"] == float(threshold)
    assert result["hugging_face"] is None


def test_few_articles_leave_a_gate_open(
    result_of: Result,
    tiny_checkpoint_dir: Path,
    tiny_model_dir: Path,
    articles: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summarization, "rouge_scores", lambda *_: dict.fromkeys(summarization.METRICS, (10.0, 40.0)))
    words = ("--engine_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--dataset", articles)
    result_of("summarize", "--test_trt_llm", *words, "--check_accuracy", "--output_len", "3")
    assert "gate ROUGE-1 >= 15: passed, but so few articles leave it open" in capsys.readouterr().out
    monkeypatch.setattr(summarization, "rouge_scores", lambda *_: dict.fromkeys(summarization.METRICS, (1.0, 2.0)))
    result_of("summarize", "--test_trt_llm", *words, "--check_accuracy", "--output_len", "3", exit_code=1)
    assert capsys.readouterr().out.endswith("gate ROUGE-1 >= 15: FAILED\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to judge is named; give --test_trt_llm, --test_hf or both"),
        (["--test_trt_llm"], "--test_trt_llm without --engine_dir; give --engine_dir"),
        (["--test_hf"], "--test_hf without --hf_model_dir; give --hf_model_dir"),
        (["--test_trt_llm", "--engine_dir", "e"], "no tokenizer is named; give --tokenizer_dir or --hf_model_dir"),
        (["--test_hf", "--hf_model_dir", "m", "--check_accuracy"], "--check_accuracy without --test_trt_llm; add"),
        (["--test_hf", "--hf_model_dir", "m", "--num_beams", "2"], "--num_beams 2; allowed: 1: there is no beam"),
        (["--test_hf", "--hf_model_dir", "m", "--max_ite", "0"], "--max_ite 0; allowed: whole numbers from 1"),
        (["--test_hf", "--hf_model_dir", "m", "--batch_size", "0"], "batch_size is 0; allowed: whole numbers from 1"),
    ],
)
def test_flags_that_do_not_fit(refused: Refused, words: list[str], message: str) -> None:
    assert message in refused("summarize", *words)


def test_who_is_asked_for_a_dataset_is_told(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_data, "_hub_answers", lambda _: False)
    for offline, said in ((False, "asking the hub for cnn_dailymail\n"), (True, "")):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
        assert main(["summarize", "--test_hf", "--hf_model_dir", str(tiny_model_dir)]) == 2
        told = capsys.readouterr()
        assert told.out == said
        assert "dataset 'cnn_dailymail' cannot be reached" in told.err


def test_limits_of_the_engine_are_kept(
    refused: Refused, tiny_engine_dir: Path, tiny_model_dir: Path, articles: Path
) -> None:
    words = (
        "--engine_dir",
        tiny_engine_dir,
        "--backend",
        "cpu",
        "--tokenizer_dir",
        tiny_model_dir,
        "--dataset",
        articles,
    )
    assert "max_output_len 100; allowed: 1 to 8" in refused("summarize", "--test_trt_llm", *words)
