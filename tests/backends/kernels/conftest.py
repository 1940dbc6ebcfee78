"""Fixtures of the kernel tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.triton_interpreter import let_the_interpreter_count


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every ``torch.empty`` is filled with NaN (integers: their maximum), so that what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small operations wait for each other longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton's kernels run here: a GPU, or the CPU under ``TRITON_INTERPRET=1`` (set it before pytest starts)."""
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 for Triton's interpreter")
    let_the_interpreter_count()
    return "cpu"
