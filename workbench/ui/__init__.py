"""Widgets and plots; the only place that imports ipywidgets. Each name is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "AlphaPanel": "workbench.ui.alpha_panel",
    "ComparePanel": "workbench.ui.compare_panel",
    "JobPanel": "workbench.ui.job_panel",
    "KVScalesPanel": "workbench.ui.kv_scales_panel",
    "LayerDiffPanel": "workbench.ui.layer_diff_panel",
    "PlaygroundPanel": "workbench.ui.playground_panel",
    "RangesPanel": "workbench.ui.ranges_panel",
    "RecipePanel": "workbench.ui.recipe_panel",
}

__all__ = [
    "AlphaPanel",
    "ComparePanel",
    "JobPanel",
    "KVScalesPanel",
    "LayerDiffPanel",
    "PlaygroundPanel",
    "RangesPanel",
    "RecipePanel",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'workbench.ui' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
