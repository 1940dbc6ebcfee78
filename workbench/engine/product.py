"""Which TensorRT this machine has. Both products share the calls that we use; where they differ, ask ``hasattr``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from workbench.errors import BackendError

FULL, RTX = "tensorrt", "tensorrt_rtx"


@dataclass(frozen=True)
class Product:
    """One importable TensorRT.

    Attributes:
        name: ``tensorrt`` (data-centre GPUs; needs a GPU to build) or ``tensorrt_rtx`` (builds without one).
        version: its version text.
        trt: the module.
    """

    name: str
    version: str
    trt: Any


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the first CUDA device, or None without one."""
    import torch

    return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None


def product_for_building() -> Product:
    """The full product where it and a GPU exist, else TensorRT-RTX, which compiles ahead of time on a CPU.

    Raises:
        BackendError: neither can be imported.
    """
    if cuda_capability() is not None and (full := _import(FULL)) is not None:
        return _product(FULL, full)
    if (rtx := _import(RTX)) is not None:
        return _product(RTX, rtx)
    raise BackendError(
        "no TensorRT is installed (neither tensorrt with a GPU, nor tensorrt_rtx)",
        allowed="tensorrt-rtx-cu13 on x86-64 Linux and Windows, or tensorrt with a GPU",
        fix="pip install tensorrt-rtx-cu13, or run the checkpoint itself with --backend cpu",
    )


def product_named(name: str) -> Product:
    """The product that an engine was built with.

    Raises:
        BackendError: it is not installed here.
    """
    module = _import(name)
    if module is None:
        raise BackendError(
            f"the engine was built with {name}, which is not installed here",
            fix=f"install {name}, or run the engine's checkpoint with --backend cpu",
        )
    return _product(name, module)


def _product(name: str, module: ModuleType) -> Product:
    return Product(name, str(module.__version__), module)


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None
