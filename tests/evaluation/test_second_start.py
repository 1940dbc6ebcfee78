"""Two starts of a process, and what is said of them."""

from __future__ import annotations

import time

import pytest
import torch

from tests.evaluation.small_gpu_model import SMALL
from workbench.evaluation import second_start
from workbench.evaluation.second_start import Start, first_tokens, main, started
from workbench.model.presets import PRESETS


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "timing a start" in capsys.readouterr().err


def test_both_starts_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    starts = iter([Start(3.0, 5.0, 21.0, 22.0), Start(3.0, 5.0, 6.5, 6.9)])
    monkeypatch.setattr(second_start, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(second_start, "started", lambda *_: next(starts))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "second start: imports 3.0, weights packed 5.0, first token 6.5, second token 6.9 s"
    assert lines[0].startswith("first start: imports 3.0")


def test_a_prompt_of_no_tokens_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(second_start, "require_gpu", lambda *_, **__: None)
    assert main(["--tokens", "0"]) == 2
    assert "max_input_len is 0; allowed: whole numbers from 1" in capsys.readouterr().err


def test_a_failed_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*_: object) -> Start:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(second_start, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(second_start, "started", failing)
    assert main([]) == 1
    assert capsys.readouterr().err == "error: the first start failed: out of memory\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_start_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no CUDA GPU"):
        started("internlm-7b", "int4", 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_times_of_a_start_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", SMALL)
    found = first_tokens("small", "int4", 5, time.time())
    assert 0 <= found.imported < found.opened < found.first_token < found.second_token
