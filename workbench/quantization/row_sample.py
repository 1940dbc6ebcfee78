"""A sample of the rows that enter each linear layer, on disk: what tuning multiplies its candidates with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.errors import CheckpointError, nearest
from workbench.quantization.layer_walk import Seen
from workbench.quantization.range_counter import input_linear
from workbench.quantization.ranges import read_metadata

ROWS_FILE = "rows.safetensors"


def spread(windows: int, length: int, count: int) -> Tensor:
    """Which tokens to keep: ``[windows, length]`` bool with ``count`` true, or all where there are no more.

    The tokens stand at even distances; each window is turned by its own number, so that a position, such as the very
    first with its outliers, is not met in every window or in none.
    """
    total = windows * length
    chosen = torch.arange(min(count, total)) * total // min(count, total)
    window, position = chosen // length, chosen % length
    kept = torch.zeros(windows, length, dtype=torch.bool)
    kept[window, (position + window) % length] = True
    return kept


class RowSampler:
    """Writes the chosen rows of every linear layer's input as a walk shows them.

    Args:
        writer: of a file planned by :func:`planned_rows`.
        kept: the choice, by :func:`spread`, for the windows of this walk.
        dtype: of activations.
    """

    def __init__(self, writer: SafetensorsWriter, kept: Tensor, dtype: torch.dtype) -> None:
        self.writer, self.kept, self.dtype = writer, kept, dtype

    def watch(self, seen: Seen) -> None:
        """Keep the chosen rows of one tapped tensor, where it is some linear layer's input."""
        linear = input_linear(seen.tap)
        if linear is None:
            return
        kept = self.kept[seen.first_window : seen.first_window + len(seen.value)]
        rows = seen.value[kept.to(seen.value.device)].to("cpu", self.dtype)
        if len(rows):
            self.writer.write_rows(linear, rows)


def planned_rows(widths: dict[str, tuple[int, int]], rows: int, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """What a file of rows holds: linear layer -> ``[rows, in]``; ``widths`` gives input and output features."""
    return {name: TensorSpec(dtype, (rows, width)) for name, (width, _) in widths.items()}


class RowSample:
    """Sampled input rows, mapped from their file."""

    def __init__(self, file: SafetensorsFile) -> None:
        self.file = file

    @property
    def linears(self) -> tuple[str, ...]:
        """The linear layers that it has rows of."""
        return tuple(self.file.places)

    def require_model(self, fingerprint: str) -> None:
        """Refuse rows of another model than the one with this fingerprint.

        Raises:
            CheckpointError: they are.
        """
        found = json.loads(read_metadata(self.file).get("run", "{}")).get("model", "unknown")
        if found != fingerprint:
            raise CheckpointError(
                f"{self.file.path} holds rows of model {found[:12]}",
                allowed=f"rows of model {fingerprint[:12]}",
                fix="calibrate this model with workbench calibrate",
            )

    def __call__(self, linear: str) -> Tensor:
        """Input rows of a linear layer, ``[rows, in]`` in the dtype of the calibration.

        Raises:
            CheckpointError: there are none.
        """
        if linear not in self.file.places:
            raise CheckpointError(
                f"{self.file.path} holds no rows of {linear!r}", fix=nearest(linear, self.file.places) or None
            )
        return self.file.tensor(linear)


def load_rows(folder: str | Path) -> RowSample:
    """The sampled rows in a calibration's folder.

    Raises:
        CheckpointError: there are none.
    """
    path = Path(folder) / ROWS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", fix="run workbench calibrate with tune samples")
    return RowSample(SafetensorsFile(path))
