"""Reads a unified checkpoint: the config, and weights that are views of the mapped file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.dummy import DummyTensors, dummy_bytes
from workbench.checkpoint.hf_config import CONFIG_FILE
from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.lazy_layers import LazyLayers
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.unified_config import (
    DENSE,
    KIND,
    UnifiedConfig,
    config_checksum,
    rank_file,
    read_unified_config,
)
from workbench.checkpoint.weight_fields import INPUT_SCALE, is_static, row_suffixes, unpack
from workbench.errors import CheckpointError
from workbench.model.config import ModelConfig
from workbench.model.weights import KVScales, LayerWeights, LinearWeight, ModelWeights
from workbench.recipe import Recipe, SmoothQuant

_AGAIN = "convert the model again: workbench convert"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        folder: where it is.
        config: the model's shape.
        recipe: what it was converted by.
        weights: this rank's weights; layers are read when they are indexed.
        checksum: SHA-256 text; another one means other weights or another config.
        state: "dense", "calibrated" (dense, with ranges: it can still be quantized) or "quantized".
        smoothing: what is folded into the weights; None for nothing. Its granularities say nothing.
        fingerprint: which model it was made from.
        held_bytes: memory that the weights take once they are read; 0 where they are mapped from files.
    """

    folder: Path
    config: ModelConfig
    recipe: Recipe
    weights: ModelWeights
    checksum: str
    state: str = DENSE
    smoothing: SmoothQuant | None = None
    fingerprint: str = ""
    held_bytes: int = 0


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder's ``config.json`` says that it is a checkpoint of ours; never raises."""
    try:
        return JsonFields.read(Path(folder) / CONFIG_FILE).section("workbench").content.get("kind") == KIND
    except CheckpointError:
        return False


def load_checkpoint(folder: str | Path, rank: int = 0) -> Checkpoint:
    """Open a checkpoint; reads the config and one header.

    Raises:
        CheckpointError: no checkpoint, another format version, no such rank, or a file that is truncated or whose
            tensors are not those that the config promises.
    """
    folder = Path(folder)
    config = read_unified_config(folder)
    if not 0 <= rank < len(config.rank_checksums):
        raise CheckpointError(f"{folder} has no rank {rank}", allowed=f"0 to {len(config.rank_checksums) - 1}")
    return Checkpoint(
        folder,
        config.model,
        config.recipe,
        _Reader(_tensors(folder, config, rank), config).weights(),
        config_checksum(folder),
        state=config.state,
        smoothing=config.smoothing,
        fingerprint=config.source.get("fingerprint", ""),
        held_bytes=_held_bytes(config),
    )


class _Tensors(Protocol):
    """One rank's tensors: those of a file, or dummies."""

    @property
    def places(self) -> Mapping[str, Any]: ...
    def tensor(self, name: str) -> Tensor: ...
    def stacked(self, names: Sequence[str]) -> Tensor: ...


def _tensors(folder: Path, config: UnifiedConfig, rank: int) -> _Tensors:
    if config.dummy_seed is not None:
        return DummyTensors(layout.checkpoint_tensors(config.model, config.recipe), config.dummy_seed)
    file = SafetensorsFile(folder / rank_file(rank))
    _check_tensors(file, config)
    return file


def _held_bytes(config: UnifiedConfig) -> int:
    return 0 if config.dummy_seed is None else dummy_bytes(layout.checkpoint_tensors(config.model, config.recipe))


def verify_checksum(folder: str | Path) -> None:
    """Read every byte of a checkpoint and compare it with the checksums in its config; dummy weights have no bytes.

    Raises:
        CheckpointError: a file is not what was written.
    """
    folder = Path(folder)
    config = read_unified_config(folder)
    if config.dummy_seed is not None:
        return
    checksums = {rank_file(rank): checksum for rank, checksum in enumerate(config.rank_checksums)}
    for name, expected in (checksums | config.ranges_checksum).items():
        found = SafetensorsFile(folder / name).checksum()
        if found != expected:
            raise CheckpointError(f"{folder / name} has checksum {found}", allowed=expected, fix=_AGAIN)


def _check_tensors(file: SafetensorsFile, config: UnifiedConfig) -> None:
    planned = layout.checkpoint_tensors(config.model, config.recipe)
    for name, spec in planned.items():
        if name not in file.places:
            raise CheckpointError(f"{file.path}: tensor {name!r} is missing", allowed=str(spec), fix=_AGAIN)
        if file.places[name].spec != spec:
            found = file.places[name].spec
            raise CheckpointError(f"{file.path}: tensor {name!r} is {found}", allowed=str(spec), fix=_AGAIN)
    unknown = [name for name in file.places if name not in planned]
    if unknown:
        raise CheckpointError(f"{file.path}: tensor {unknown[0]!r} is not one of the format", fix=_AGAIN)


class _Reader:
    """Tensors of one rank -> weights."""

    def __init__(self, file: _Tensors, config: UnifiedConfig) -> None:
        self.file, self.config = file, config

    def weights(self) -> ModelWeights:
        return ModelWeights(
            layers=LazyLayers(self.config.model.num_layers, self._layer),
            embedding=self.file.tensor(layout.EMBEDDING),
            final_norm=self.file.tensor(layout.FINAL_NORM),
            lm_head=self._linear(layout.LM_HEAD),
        )

    def _layer(self, layer: int) -> LayerWeights:
        prefix = layout.layer_prefix(layer)
        return LayerWeights(
            attention_norm=self.file.tensor(prefix + layout.ATTENTION_NORM),
            qkv=self._linear(f"layers.{layer}.attention.qkv"),
            o=self._linear(f"layers.{layer}.attention.o"),
            mlp_norm=self.file.tensor(prefix + layout.MLP_NORM),
            gate_up=self._linear(f"layers.{layer}.mlp.gate_up"),
            down=self._linear(f"layers.{layer}.mlp.down"),
            kv_scales=self._kv_scales(prefix),
        )

    def _kv_scales(self, prefix: str) -> KVScales | None:
        how = self.config.recipe.kv_cache
        if how is None:
            return None
        key, value = (self.file.tensor(prefix + name) for name in (layout.KEY_SCALE, layout.VALUE_SCALE))
        return layout.unpack_kv_scales(how, key, value)

    def _linear(self, linear: str) -> LinearWeight:
        prefixes, how = layout.stored_prefixes(linear), self.config.recipe.weights_of(linear)
        fields: dict[str, Tensor] = {
            suffix: self.file.stacked([f"{prefix}.{suffix}" for prefix in prefixes])
            for suffix in row_suffixes(how)
            if f"{prefixes[0]}.{suffix}" in self.file.places
        }
        if is_static(how):
            fields[INPUT_SCALE] = self.file.tensor(f"{prefixes[0]}.{INPUT_SCALE}")
        return unpack(how, fields)
