"""The InternLM Workbench: look at activations, tune quantization, compare layers, build and run TensorRT engines.

Importing this package imports neither torch nor TensorRT nor MPI; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Recipe": "workbench.recipe",
    "LayerDiff": "workbench.evaluation.layer_diff",
    "ui": "workbench.ui",
}

__all__ = ["LayerDiff", "Recipe", "__version__", "ui"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
