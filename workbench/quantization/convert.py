"""A Hugging Face checkpoint and a recipe -> a unified checkpoint, a few rows at a time.

Sources are mapped files, results go straight to disk: memory does not grow with the model.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.cast import WeightWarning, cast, count_not_finite, torch_dtype
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.output_folder import check_output, output_folder
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import UnifiedConfig, rank_file, write_unified_config
from workbench.errors import CheckpointError, RecipeError
from workbench.model.config import ModelConfig
from workbench.model.weights import DenseWeight
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.quantize import CHUNK_VALUES, quantize_linear, rows_per_chunk
from workbench.recipe import Recipe

# Five float32 copies of a chunk, its integers, and what the allocator keeps; 26 measured by
# tests/quantization/measure_conversion_memory.py.
_BYTES_PER_CHUNK_VALUE = 28
_CONFIG_BYTES = 1 << 16


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will take.

    Attributes:
        disk_bytes: size of the checkpoint.
        memory_bytes: most memory beside the interpreter's own and the page cache.
        parameters: values in the source.
    """

    disk_bytes: int
    memory_bytes: int
    parameters: int


def plan_conversion(model_dir: str | Path, recipe: Recipe) -> ConversionPlan:
    """What :func:`convert` will take; reads the config and headers only.

    Raises:
        CheckpointError: the model's folder is not usable.
        RecipeError: the recipe does not fit the model.
    """
    return _plan(_open(model_dir, recipe), recipe)


def convert(
    model_dir: str | Path, recipe: Recipe, out: Path, *, force: bool = False, report: Reporter = silent
) -> Checkpoint:
    """Convert a model; ``out`` appears whole or, on any error or Ctrl-C, not at all.

    Weights that are NaN or infinite are carried over with a :class:`WeightWarning`.

    Args:
        model_dir: the Hugging Face folder; it takes the place of ``recipe.model``.
        recipe: how to quantize.
        out: the checkpoint's folder.
        force: replace an existing checkpoint.
        report: told the bytes of the source that are done.

    Raises:
        CheckpointError: the source is not usable, a value does not fit the dtype, ``out`` exists or lies in the source,
            or the disk is too small.
        RecipeError: the recipe does not fit the model.
    """
    source, out = _open(model_dir, recipe), Path(out)
    recipe = replace(recipe, model=str(model_dir))
    _check_apart(source.folder, out)
    disk_bytes = _plan(source, recipe).disk_bytes
    check_output(out, force=force, needed_bytes=disk_bytes)
    with output_folder(out, force=force, needed_bytes=disk_bytes) as folder:
        with SafetensorsWriter(folder / rank_file(0), layout.checkpoint_tensors(source.config, recipe)) as writer:
            _Conversion(source, recipe, writer, report).run()
        config = UnifiedConfig(
            source.config, recipe, {"fingerprint": source.fingerprint()}, rank_checksums=(writer.checksum,)
        )
        write_unified_config(folder, config)
    return load_checkpoint(out)


def _open(model_dir: str | Path, recipe: Recipe) -> HFCheckpoint:
    source = HFCheckpoint.open(model_dir)
    source.check()
    _check_keep(recipe, source.config)
    return source


def _plan(source: HFCheckpoint, recipe: Recipe) -> ConversionPlan:
    specs = [source.spec(name) for name in hf_names.tensor_shapes(source.config)]
    tensors = layout.checkpoint_tensors(source.config, recipe)
    file_bytes = SafetensorsWriter(rank_file(0), tensors).file_bytes
    widest = max(max(spec.shape[-1], min(spec.elements, CHUNK_VALUES)) for spec in specs)
    return ConversionPlan(
        disk_bytes=file_bytes + _CONFIG_BYTES,
        memory_bytes=widest * _BYTES_PER_CHUNK_VALUE,
        parameters=sum(spec.elements for spec in specs),
    )


def _check_keep(recipe: Recipe, config: ModelConfig) -> None:
    """A pattern that names no layer of this model is a mistake; ``lm_head`` always does."""
    names = list(layout.linear_names(config))
    for pattern in recipe.keep:
        if not fnmatch.filter(names, pattern):
            allowed = f"layers 0 to {config.num_layers - 1}"
            raise RecipeError(f"keep names {pattern!r}, which this model does not have", allowed=allowed)


def _check_apart(source: Path, out: Path) -> None:
    source, out = source.resolve(), out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise CheckpointError(
            f"output {out} and the model {source} lie in one another", fix="give an output outside the model's folder"
        )


class _Conversion:
    """One run: walks the model in the order of a forward pass."""

    def __init__(self, source: HFCheckpoint, recipe: Recipe, writer: SafetensorsWriter, report: Reporter) -> None:
        self.source, self.recipe, self.writer, self.report = source, recipe, writer, report
        self.dtype = torch_dtype(recipe.dtype)
        self.total = sum(source.spec(name).bytes for name in hf_names.tensor_shapes(source.config))
        self.done = 0

    def run(self) -> None:
        self._copy(hf_names.EMBEDDING, layout.EMBEDDING)
        for layer in range(self.source.config.num_layers):
            theirs, ours = hf_names.layer_prefix(layer), layout.layer_prefix(layer)
            self._copy(theirs + hf_names.ATTENTION_NORM, ours + layout.ATTENTION_NORM)
            self._copy(theirs + hf_names.MLP_NORM, ours + layout.MLP_NORM)
            for site, projections in hf_names.LINEARS.items():
                self._linear(f"layers.{layer}.{site}", [theirs + projection for projection in projections])
        self._copy(hf_names.FINAL_NORM, layout.FINAL_NORM)
        self._linear(layout.LM_HEAD, [hf_names.LM_HEAD.removesuffix(".weight")])

    def _copy(self, theirs: str, ours: str) -> None:
        """A tensor that is never quantized."""
        for rows in self._chunks(theirs):
            self.writer.write_rows(ours, cast(rows, self.dtype, self._name(theirs)))

    def _linear(self, linear: str, projections: list[str]) -> None:
        """A fused linear layer from the projections that it stacks, spread over the layers that store it."""
        prefixes = layout.stored_prefixes(linear)
        each = len(projections) // len(prefixes)
        for i, prefix in enumerate(prefixes):
            for projection in projections[i * each : (i + 1) * each]:
                self._projection(linear, projection, prefix)

    def _projection(self, linear: str, projection: str, prefix: str) -> None:
        how = self.recipe.weights_of(linear)
        bias = None
        if hf_names.has_bias(self.source.config, linear.split(".", 2)[-1]):
            (bias,) = self._chunks(f"{projection}.bias")
        start = 0
        for rows in self._chunks(f"{projection}.weight"):
            part = None if bias is None else bias[start : start + len(rows)]
            weight = quantize_linear(DenseWeight(rows, part), how, self.dtype, self._name(f"{projection}.weight"))
            for suffix, tensor in layout.pack(weight).items():
                self.writer.write_rows(f"{prefix}.{suffix}", tensor)
            start += len(rows)

    def _chunks(self, name: str) -> Iterator[Tensor]:
        """The rows of a source tensor, a few at a time; tells how far the job is, and of values that are no numbers."""
        tensor = self.source.tensor(name)
        step = rows_per_chunk(tensor.shape[1]) if tensor.dim() > 1 else len(tensor)
        strange = 0
        for rows in torch.split(tensor, step):
            strange += count_not_finite(rows)
            yield rows
            self.done += rows.nbytes
            self.report(ProgressEvent("convert", self.done, self.total, "B"))
        if strange:
            warnings.warn(
                f"{self._name(name)} holds {strange} values that are NaN or infinite", WeightWarning, stacklevel=2
            )

    def _name(self, tensor: str) -> str:
        return f"{self.source.path_of(tensor)}: tensor {tensor!r}"
