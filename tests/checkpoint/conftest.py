"""A small model and a small checkpoint that a test may break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint.breakable import Breakable
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe


@pytest.fixture
def model(tmp_path: Path, random_model_dir: Callable[..., Path]) -> Breakable:
    """A small GQA model with biases."""
    shutil.copytree(random_model_dir(kv_heads=2), tmp_path / "model")
    return Breakable(tmp_path / "model", "model.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path, model: Breakable) -> Breakable:
    """``model`` as INT8, with a dense head."""
    convert(model.folder, Recipe(weights=Int8WeightOnly()), tmp_path / "checkpoint")
    return Breakable(tmp_path / "checkpoint", "rank0.safetensors")
