"""Times between two events, and the bandwidth of a copy: counted with events that count copies."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from workbench.evaluation import gpu_clock
from workbench.evaluation.gpu_clock import COPY_BYTES, copy_bandwidth, elapsed_ms


class _Event:
    """Reads a clock that is turned by hand."""

    now = 0.0

    def record(self) -> None:
        self.at = _Event.now

    def elapsed_time(self, end: _Event) -> float:
        return end.at - self.at


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    waits: list[str] = []
    monkeypatch.setattr(gpu_clock, "timer", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append("waited"))
    return waits


def _pass(time_ms: float) -> None:
    _Event.now += time_ms


def test_what_is_queued_is_timed_and_waited_for(events: list[str]) -> None:
    _pass(5)
    assert elapsed_ms(lambda: _pass(3)) == 3
    assert events == ["waited"]


def test_a_copy_reads_and_writes_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_clock, "COPY_BYTES", 4096)
    times = iter([99.0, *[2.0] * 9, 50.0])  # the first is not timed; one is late
    copy = torch.Tensor.copy_

    def counted(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        assert target.nbytes == 4096
        _pass(next(times))
        return copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    assert copy_bandwidth(torch.device("cpu")) == pytest.approx(2 * 4096 / 2e-3)
    assert next(times, None) is None
    assert COPY_BYTES == 1 << 30  # as tables say
