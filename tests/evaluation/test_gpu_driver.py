"""The driver's version: asked of a library that is not here, so of stand-ins for it."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.evaluation import gpu_driver
from workbench.evaluation.gpu_driver import driver_version


def _nvml(calls: list[str], begin: int = 0, answer: int = 0) -> Any:
    def version(text: Any, length: ctypes.c_uint) -> int:
        assert length.value == len(text)
        text.value = b"580.65.06"
        return answer

    return SimpleNamespace(
        nvmlInit_v2=lambda: begin,
        nvmlSystemGetDriverVersion=version,
        nvmlShutdown=lambda: calls.append("shut down"),
    )


@pytest.mark.parametrize(
    ("begin", "answer", "told", "ends"), [(0, 0, "580.65.06", 1), (0, 999, "unknown", 1), (9, 0, "unknown", 0)]
)
def test_the_library_is_asked_and_left(
    monkeypatch: pytest.MonkeyPatch, begin: int, answer: int, told: str, ends: int
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: _nvml(calls, begin, answer))
    assert driver_version() == told
    assert len(calls) == ends


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_driver, "LIBRARIES", ("no-such-library.so",))
    assert driver_version() == "unknown"
