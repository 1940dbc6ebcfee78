"""Kernels for NVIDIA GPUs: Triton where it is at the ceiling, CUDA C++ compiled at run time where it is not."""

from __future__ import annotations

import importlib.util

from workbench.errors import BackendError

LEAST_CAPABILITY = (8, 0)  # the first whose processors have the matrix instructions and asynchronous copies we use


ON_THE_CPU = "use the CPU"


def require_gpu(what: str, otherwise: str = ON_THE_CPU) -> None:
    """Refuse what needs these kernels on a machine that cannot run them; imports torch, but not Triton.

    Args:
        what: is asked for, as the message should begin.
        otherwise: what can be done without a GPU, as the message should say it; empty where nothing can.

    Raises:
        BackendError: torch finds no CUDA device, or one that is too old, or Triton or NVRTC is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        raise BackendError(f"{what}, but torch finds no CUDA GPU", fix=_fix(otherwise, "a machine with an NVIDIA GPU"))
    if importlib.util.find_spec("triton") is None:
        raise BackendError(f"{what}, but Triton is not installed", fix="pip install triton")
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        major, minor = torch.cuda.get_device_capability()
        raise BackendError(
            f"{what}, but {torch.cuda.get_device_name()} has compute capability {major}.{minor}",
            allowed="8.0 (A100) and newer",
            fix=_fix(otherwise, "a newer GPU"),
        )
    from workbench.backends.kernels.nvrtc import find_nvrtc

    if find_nvrtc() is None:
        raise BackendError(
            f"{what}, but NVRTC, CUDA's run-time compiler, was not found",
            fix="install the CUDA build of torch, or `pip install nvidia-cuda-nvrtc`",
        )


def _fix(otherwise: str, machine: str) -> str:
    return f"{otherwise}, or {machine}" if otherwise else f"use {machine}"
