"""A checkpoint folder of dummy weights: a ``config.json`` alone. Its weights are drawn when it is loaded."""

from __future__ import annotations

from pathlib import Path

from workbench.checkpoint.dummy import dummy_fingerprint
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import DUMMY_SEED, UnifiedConfig, write_unified_config
from workbench.model.config import ModelConfig
from workbench.recipe import Recipe


def write_dummy_checkpoint(folder: Path, config: ModelConfig, recipe: Recipe, seed: int = 0) -> Checkpoint:
    """Write what stands for a checkpoint of ``config`` by ``recipe`` into a new folder, and open it."""
    folder.mkdir(parents=True)
    fingerprint = dummy_fingerprint(config, seed)
    source = {"fingerprint": fingerprint, DUMMY_SEED: str(seed)}
    write_unified_config(folder, UnifiedConfig(config, recipe, source, (fingerprint,)))
    return load_checkpoint(folder)
