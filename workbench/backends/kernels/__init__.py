"""Kernels for NVIDIA GPUs: Triton where it is at the ceiling, CUDA C++ compiled at run time where it is not."""

from __future__ import annotations

import importlib.util

from workbench.errors import BackendError


def require_gpu(what: str) -> None:
    """Refuse what needs these kernels on a machine that cannot run them; imports torch, but not Triton.

    Args:
        what: is asked for, as the message should begin.

    Raises:
        BackendError: torch finds no CUDA device, or Triton is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        raise BackendError(f"{what}, but torch finds no CUDA GPU", fix="use the CPU, or a machine with a GPU")
    if importlib.util.find_spec("triton") is None:
        raise BackendError(f"{what}, but Triton is not installed", fix="pip install triton")
