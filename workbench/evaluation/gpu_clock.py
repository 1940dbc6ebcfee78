"""Times work on a GPU by events on the device, and the copy that its bandwidth is taken from. Knows no models."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from workbench.backends.kernels.nvrtc import timer

COPY_BYTES = 1 << 30


def elapsed_ms(work: Callable[[], object]) -> float:
    """Time on the device between the first and the last kernel that ``work`` queues."""
    begin, end = timer(), timer()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy on the device reads and writes; median of 10."""
    source = torch.empty(COPY_BYTES // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)

    def copy() -> None:
        target.copy_(source)

    times = [elapsed_ms(copy) for _ in range(10)]
    return 2 * COPY_BYTES / (statistics.median(times) / 1e3)
