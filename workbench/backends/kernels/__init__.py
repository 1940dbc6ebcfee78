"""Kernels for NVIDIA GPUs: Triton where it is at the ceiling, CUDA C++ compiled at run time where it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from workbench.errors import BackendError

LEAST_CAPABILITY = (8, 0)  # the first whose processors have the matrix instructions and asynchronous copies we use


ON_THE_CPU = "use the CPU"


class NoGpuError(BackendError):
    """No GPU here can run these kernels.

    Args:
        what: was asked for.
        needs: what it needs.
        reason: what is in the way, as a clause that can stand alone: "torch finds no CUDA GPU".
        allowed: the GPUs that could.
        fix: what to do.
    """

    def __init__(
        self, what: str, needs: str, reason: str, *, allowed: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(f"{what} needs {needs}, and {reason}", allowed=allowed, fix=fix)
        self.reason = reason


def require_gpu(what: str, otherwise: str | Callable[[], str] = ON_THE_CPU) -> None:
    """Refuse what needs these kernels on a machine that cannot run them; imports torch, but not Triton.

    Args:
        what: is asked for, as the subject of "needs an NVIDIA GPU".
        otherwise: what can be done without a GPU, as the message should say it; empty where nothing can. May be a
            function, which is called where the message is needed.

    Raises:
        NoGpuError: torch finds no CUDA device, or one that is too old, or Triton or NVRTC is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        fix = _fix(otherwise, "a machine with an NVIDIA GPU")
        raise NoGpuError(what, "an NVIDIA GPU", "torch finds no CUDA GPU", fix=fix)
    if importlib.util.find_spec("triton") is None:
        raise NoGpuError(what, "Triton", "Triton is not installed", fix="pip install triton")
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        major, minor = torch.cuda.get_device_capability()
        raise NoGpuError(
            what,
            "a newer GPU",
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}",
            allowed="8.0 (A100) and newer",
            fix=_fix(otherwise, "a newer GPU"),
        )
    from workbench.backends.kernels.nvrtc import find_nvrtc

    if find_nvrtc() is None:
        raise NoGpuError(
            what,
            "a compiler at run time",
            "NVRTC, CUDA's run-time compiler, was not found",
            fix="install the CUDA build of torch, or `pip install nvidia-cuda-nvrtc`",
        )


def _fix(otherwise: str | Callable[[], str], machine: str) -> str:
    told = otherwise if isinstance(otherwise, str) else otherwise()
    return f"{told}, or use {machine}" if told else f"use {machine}"
