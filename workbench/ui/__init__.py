"""Widgets and plots; the only place that imports ipywidgets. Each name is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {"JobPanel": "workbench.ui.job_panel", "LayerDiffPanel": "workbench.ui.layer_diff_panel"}

__all__ = ["JobPanel", "LayerDiffPanel"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'workbench.ui' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
