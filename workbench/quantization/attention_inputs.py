"""What enters attention in every layer, for a few windows, in a file: queries, keys and values before RoPE.

For studies of the KV cache that run no model. The file is streamed layer by layer and appears whole or not at all; its
header says which model it is of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workbench.checkpoint.cast import all_finite, torch_dtype
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.errors import CheckpointError, RecipeError
from workbench.model.taps import layer_tap
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.calibration import check_windows
from workbench.quantization.layer_walk import LayerWalk, Seen, Watcher
from workbench.quantization.ranges import read_metadata
from workbench.recipe import DTYPES

ATTENTION_INPUTS_FILE = "attention_inputs.safetensors"
# Windows that run together.
BATCH = 8
_SITE = "attention.qkv"
_FORMAT = {"kind": "attention inputs", "version": "1"}


@dataclass(frozen=True)
class CollectOptions:
    """How the model runs that attention's inputs are collected from.

    Attributes:
        dtype: of weights and activations.
        device: "cpu" or a CUDA device.

    Raises:
        RecipeError: no such dtype.
    """

    dtype: str = "bfloat16"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype of attention inputs is {self.dtype!r}", allowed=", ".join(DTYPES))


def collect_attention_inputs(
    source: HFCheckpoint,
    windows: Tensor,
    folder: str | Path,
    options: CollectOptions | None = None,
    report: Reporter = silent,
) -> Path:
    """Run windows through a model and keep what enters attention; an older file is replaced.

    Args:
        source: the model.
        windows: ``[count, length]`` int64 token ids, of other text than the ranges that are to be judged with them.
        folder: made if it is not there; gets ``attention_inputs.safetensors``.
        options: how the model runs; None takes the defaults.
        report: told the layers that are done; may stop the run, which then leaves the folder as it was.

    Returns:
        The file.

    Raises:
        CheckpointError: the model is not usable, or an activation is NaN or infinite.
        LimitError: the windows do not fit the model.
        BackendError: no such device.
    """
    options = options or CollectOptions()
    dtype = torch_dtype(options.dtype)
    source.check()
    check_windows(windows, source)
    walk = LayerWalk(source, dtype, options.device)
    layers, shape = source.config.num_layers, (*windows.shape, source.config.qkv_features)
    plan = {layer_tap(layer, _SITE): TensorSpec(dtype, shape) for layer in range(layers)}
    path = Path(folder) / ATTENTION_INPUTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with SafetensorsWriter(partial, plan, {**_FORMAT, "model": source.fingerprint()}) as writer:
            for done in walk.run(windows, BATCH, _keeper(writer, plan), head=False):
                report(ProgressEvent("attention inputs", min(done, layers), layers, "layers"))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
    return path


class AttentionInputs:
    """The file that :func:`collect_attention_inputs` writes.

    Attributes:
        file: mapped; the tap's name -> ``[windows, length, (heads + 2 kv_heads) head_dim]``.
        model_fingerprint: of the model that ran.

    Raises:
        CheckpointError: it is missing, or no such file.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path = path / ATTENTION_INPUTS_FILE if path.is_dir() else path
        self.file = SafetensorsFile(path)
        metadata = read_metadata(self.file)
        if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
            raise CheckpointError(
                f"{path} is no file of attention inputs of version {_FORMAT['version']}", fix="collect them again"
            )
        self.model_fingerprint = metadata["model"]

    @property
    def shape(self) -> tuple[int, int]:
        """Windows, and tokens in each."""
        windows, length, _ = self.file.places[layer_tap(0, _SITE)].spec.shape
        return windows, length

    def require_model(self, fingerprint: str) -> None:
        """Refuse attention inputs of another model than the one with this fingerprint.

        Raises:
            CheckpointError: they are.
        """
        if self.model_fingerprint != fingerprint:
            raise CheckpointError(
                f"{self.file.path} holds attention inputs of model {self.model_fingerprint[:12]}",
                allowed=f"those of model {fingerprint[:12]}",
                fix="collect them again with this model",
            )

    def __call__(self, layer: int) -> Tensor:
        """One layer's, ``[windows, length, (heads + 2 kv_heads) head_dim]`` in the dtype of the run; a view.

        Raises:
            RecipeError: there is no such layer.
        """
        tap = layer_tap(layer, _SITE)
        if tap not in self.file.places:
            raise RecipeError(f"the model has no layer {layer}", allowed=f"0 to {len(self.file.places) - 1}")
        return self.file.tensor(tap)


def _keeper(writer: SafetensorsWriter, plan: Mapping[str, TensorSpec]) -> Watcher:
    """Writes the planned taps of a walk."""

    def keep(seen: Seen) -> None:
        if seen.tap not in plan:
            return
        if not all_finite(seen.value):
            raise CheckpointError(
                f"{seen.tap} holds NaN or infinite activations",
                fix="take float32 or bfloat16, or check the model's weights",
            )
        writer.write_rows(seen.tap, seen.value.cpu())

    return keep
