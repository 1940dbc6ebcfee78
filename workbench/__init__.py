"""The InternLM Workbench: look at activations, tune quantization, compare layers, build and run TensorRT engines.

Importing this package imports neither torch nor TensorRT nor MPI; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Name here -> module, and the name there where it differs.
_LAZY = {
    "Recipe": ("workbench.recipe", "Recipe"),
    "LayerDiff": ("workbench.evaluation.layer_diff", "LayerDiff"),
    "open": ("workbench.ui.notebook", "open_bench"),
    "ui": ("workbench.ui", None),
}

__all__ = ["LayerDiff", "Recipe", "__version__", "open", "ui"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    place, attribute = _LAZY[name]
    module = importlib.import_module(place)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
