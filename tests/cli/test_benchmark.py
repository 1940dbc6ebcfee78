"""``workbench benchmark``: the table; its times are nobody's business here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]
SHORT = ("--rounds", "1", "--prompt_len", "2", "--decode_tokens", "2", "--prefill-len", "4", "--threads", "1")


def test_every_mode_has_a_line_for_decode_and_prefill(
    result_of: Result, random_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of("benchmark", "--model_dir", random_model_dir(), "--modes", "float32", "int8", *SHORT)
    lines = [(speed["mode"], speed["task"], speed["tokens"], speed["hf_dtype"]) for speed in result["speeds"]]
    assert lines == [
        ("float32", "decode", 2, "float32"),
        ("float32", "prefill", 4, "float32"),
        ("int8", "decode", 2, "bfloat16"),
        ("int8", "prefill", 4, "bfloat16"),
    ]
    assert result["options"]["threads"] == 1
    told = capsys.readouterr().out.splitlines()
    assert "1 threads" in told[0]
    assert "times as fast" in told[1]
    assert len(told) == 2 + len(lines)


def test_an_unknown_mode_is_refused(refused: Refused, random_model_dir: Callable[..., Path]) -> None:
    told = refused("benchmark", "--model_dir", random_model_dir(), "--modes", "fp32")
    assert "benchmark mode 'fp32'; allowed: float32, bfloat16, int8, float16" in told


def test_the_defaults_in_the_help_are_the_real_ones() -> None:
    from workbench.cli.benchmark import NUMBERS
    from workbench.evaluation.benchmark import BenchmarkOptions

    options = BenchmarkOptions()
    assert all(f"(default: {getattr(options, name)})" in text for name, text in NUMBERS.items())


def test_a_preset_without_a_gpu_is_refused_before_anything_is_timed(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy")
    assert "a benchmark with random weights, but torch finds no CUDA GPU; use the CPU, or a machine with a GPU" in told


def test_a_gpu_without_triton_is_told_what_to_install(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy")
    assert "Triton is not installed; pip install triton" in told


def test_what_is_timed_must_be_said(refused: Refused, random_model_dir: Callable[..., Path]) -> None:
    told = refused("benchmark")
    assert "benchmark takes --model_dir (CPU) or --preset (GPU); allowed: one of them" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy", "--model_dir", random_model_dir())
    assert "allowed: one of them" in told
    assert "--preset without --dummy; add --dummy" in refused("benchmark", "--preset", "internlm-7b")
    told = refused("benchmark", "--preset", "internlm-8b", "--dummy")
    assert "--preset internlm-8b; allowed: internlm-7b, internlm2-7b" in told
    assert "did you mean 'internlm-7b'?" in told
