"""A model (a Hugging Face folder, or dummies), a recipe and ranges -> a unified checkpoint, a few rows at a time.

Or one layer at a time. Sources are mapped files, results go straight to disk: memory does not grow with the layers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.available_memory import require_memory
from workbench.checkpoint.cast import cast, count_not_finite, torch_dtype
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.output_folder import check_apart, check_output, output_folder
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import UnifiedConfig, rank_file, write_unified_config
from workbench.checkpoint.weight_fields import is_static, pack
from workbench.checkpoint.weight_source import WeightSource
from workbench.errors import RecipeError
from workbench.model.config import ModelConfig
from workbench.model.rotary import stretched
from workbench.model.weights import DenseWeight, ModelWeights
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.layer_conversion import LayerConversion, Quantization, warn_not_finite, write_kv_scales
from workbench.quantization.observed import check_fits
from workbench.quantization.quantize import (
    CHUNK_VALUES,
    LinearFacts,
    quantize_linear,
    require_even,
    require_finite,
    rows_per_chunk,
)
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Int4WeightOnly, Recipe, SmoothQuant

# Five float32 copies of a chunk, its integers, and what the allocator keeps; 26 measured by
# tests/quantization/measure_conversion_memory.py.
BYTES_PER_CHUNK_VALUE = 28
CONFIG_BYTES = 1 << 16


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will take.

    Attributes:
        disk_bytes: size of the checkpoint.
        memory_bytes: most memory beside the interpreter's own and the page cache.
        parameters: values in the source.
        ignored: tensors of the source that the model does not have.
    """

    disk_bytes: int
    memory_bytes: int
    parameters: int
    ignored: tuple[str, ...] = ()


def plan_conversion(model_dir: str | Path | WeightSource, recipe: Recipe) -> ConversionPlan:
    """What :func:`convert` will take; reads the config and headers only.

    Raises:
        CheckpointError: the model's folder is not usable.
        RecipeError: the recipe does not fit the model.
    """
    return plan_of(open_source(model_dir, recipe), recipe)


def convert(
    model_dir: str | Path | WeightSource,
    recipe: Recipe,
    out: Path,
    *,
    ranges: ActivationRanges | None = None,
    force: bool = False,
    report: Reporter = silent,
) -> Checkpoint:
    """Convert a model; ``out`` appears whole or, on any error or Ctrl-C, not at all.

    Values that are NaN or infinite are carried over with a :class:`WeightWarning`, but never quantized or smoothed.

    Args:
        model_dir: the Hugging Face folder, which takes the place of ``recipe.model``; or another source of weights.
        recipe: how to quantize.
        out: the checkpoint's folder.
        ranges: what calibration saw of this model; smoothing, static activations and an INT8 KV cache need them.
        force: replace an existing checkpoint.
        report: told the bytes that are done.

    Raises:
        CheckpointError: the source is not usable, a value does not fit the dtype, a weight to quantize is NaN or
            infinite, ``out`` exists or lies in the source, the disk is too small, or the ranges are of another model.
        RecipeError: the recipe does not fit the model, or needs ranges and there are none.
        ResourceError: this machine has too little memory for it.
    """
    source, out = open_source(model_dir, recipe), Path(out)
    recipe = replace(recipe, model=model_name(model_dir))
    check_apart(source.location, out)
    _check_ranges(recipe, ranges, source)
    plan = plan_of(source, recipe)
    disk_bytes = plan.disk_bytes
    check_output(out, force=force, needed_bytes=disk_bytes)
    require_memory(plan.memory_bytes, "the conversion", fix="convert on a machine with more memory")
    smoothing = recipe.weights if isinstance(recipe.weights, SmoothQuant) and recipe.weights.groups else None
    with output_folder(out, force=force, needed_bytes=disk_bytes) as folder:
        with SafetensorsWriter(folder / rank_file(0), layout.checkpoint_tensors(source.config, recipe)) as writer:
            if isinstance(recipe.weights, SmoothQuant):
                how = Quantization(recipe, ranges, smoothing)
                LayerConversion(source.config, dense_weights(source), how, writer, report).run()
            else:
                _RowConversion(source, recipe, writer, report).run()
                if ranges is not None:
                    write_kv_scales(writer, source.config, recipe, ranges)
        config = UnifiedConfig(
            source.config, recipe, {"fingerprint": source.fingerprint()}, (writer.checksum,), smoothing
        )
        write_unified_config(folder, config)
    return load_checkpoint(out)


def dense_weights(source: WeightSource) -> ModelWeights:
    """The model as it is: layers in float32 and read one by one, the rest as views of the mapped file."""
    return ModelWeights(
        layers=source.layers(torch.float32),
        embedding=source.tensor(hf_names.EMBEDDING),
        final_norm=source.tensor(hf_names.FINAL_NORM),
        lm_head=DenseWeight(source.tensor(hf_names.LM_HEAD)),
    )


def layer_bytes(config: ModelConfig) -> int:
    """Memory of one decoder layer's matrices in float32."""
    shapes = [layout.linear_shape(config, site) for site in layout.LINEARS]
    return 4 * sum(rows * columns for rows, columns in shapes)


def model_name(model_dir: str | Path | WeightSource) -> str:
    """What a recipe calls the model: its folder; nothing where there is none."""
    return "" if isinstance(model_dir, WeightSource) else str(model_dir)


def open_source(model_dir: str | Path | WeightSource, recipe: Recipe) -> WeightSource:
    """Open a model and see that a recipe fits it.

    Raises:
        CheckpointError, RecipeError: as :func:`plan_conversion`.
        LimitError: the recipe asks for positions that the model cannot be given.
    """
    opened: Any = model_dir if isinstance(model_dir, WeightSource) else HFCheckpoint.open(model_dir)
    # Weights know nothing of positions: they are the same ones under another config.
    source: WeightSource = replace(opened, config=stretched(opened.config, recipe.max_positions))
    source.check()
    check_recipe(recipe, source.config)
    return source


def plan_of(source: WeightSource, recipe: Recipe) -> ConversionPlan:
    specs = [source.spec(name) for name in hf_names.tensor_shapes(source.config)]
    tensors = layout.checkpoint_tensors(source.config, recipe)
    file_bytes = SafetensorsWriter(rank_file(0), tensors).file_bytes
    widest = max(max(spec.shape[-1], min(spec.elements, CHUNK_VALUES)) for spec in specs)
    # A layer that is smoothed is there twice: as it was read, and as the copy that takes the scales.
    layers = 2 * layer_bytes(source.config) if isinstance(recipe.weights, SmoothQuant) else 0
    return ConversionPlan(
        disk_bytes=file_bytes + CONFIG_BYTES,
        memory_bytes=source.held_bytes + layers + widest * BYTES_PER_CHUNK_VALUE,
        parameters=sum(spec.elements for spec in specs),
        ignored=source.ignored,
    )


def check_recipe(recipe: Recipe, config: ModelConfig) -> None:
    """A name that fits no layer of this model is a mistake (``lm_head`` always fits), and so is INT4 of odd widths.

    Raises:
        RecipeError: the recipe makes one.
    """
    names = list(layout.linear_names(config))
    for pattern in recipe.keep:
        if not fnmatch.filter(names, pattern):
            allowed = f"layers 0 to {config.num_layers - 1}"
            raise RecipeError(f"keep names {pattern!r}, which this model does not have", allowed=allowed)
    if isinstance(recipe.weights, SmoothQuant):
        check_smoothing(recipe.weights, config)
    for name in names:
        if isinstance(recipe.weights_of(name), Int4WeightOnly):
            require_even(layout.linear_shape(config, layout.site_of(name))[1], name)


def check_smoothing(how: SmoothQuant, config: ModelConfig) -> None:
    """Refuse an alpha for a layer that the model does not have.

    Raises:
        RecipeError: there is one.
    """
    for name in how.alpha_by_group:
        if int(name.split(".")[1]) >= config.num_layers:
            raise RecipeError(
                f"weights.alpha_by_group names {name!r}, which this model does not have",
                allowed=f"layers 0 to {config.num_layers - 1}",
            )


def _check_ranges(recipe: Recipe, ranges: ActivationRanges | None, source: WeightSource) -> None:
    if ranges is not None:
        ranges.require_model(source.fingerprint())
        check_fits(ranges, source.config)
        return
    needed_for = ranges_needed_for(recipe)
    if needed_for is not None:
        raise RecipeError(
            f"the recipe asks for {needed_for}, which needs ranges, and none are given",
            fix="run 'workbench calibrate' on the model and give its ranges",
        )


def ranges_needed_for(recipe: Recipe) -> str | None:
    """What in a recipe cannot be done without ranges, in words; None when all of it can."""
    reasons = {
        "smoothing": isinstance(recipe.weights, SmoothQuant) and bool(recipe.weights.groups),
        "activations with one scale per tensor": is_static(recipe.weights),
        "an INT8 KV cache": recipe.kv_cache is not None,
    }
    return next((what for what, needed in reasons.items() if needed), None)


class _RowConversion:
    """One run of what needs no more than rows at once: walks the model in the order of a forward pass."""

    def __init__(self, source: WeightSource, recipe: Recipe, writer: SafetensorsWriter, report: Reporter) -> None:
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
            bias = torch.cat(list(self._chunks(f"{projection}.bias")))
        facts = LinearFacts(self._name(f"{projection}.weight"))
        start = 0
        for rows in self._chunks(f"{projection}.weight", finite=how is not None):
            part = None if bias is None else bias[start : start + len(rows)]
            weight = quantize_linear(DenseWeight(rows, part), how, self.dtype, facts)
            for suffix, tensor in pack(weight).items():
                self.writer.write_rows(f"{prefix}.{suffix}", tensor)
            start += len(rows)

    def _chunks(self, name: str, *, finite: bool = False) -> Iterator[Tensor]:
        """The rows of a source tensor, a few at a time; tells how far the job is, and of values that are no numbers.

        With ``finite`` such values are refused, all of the tensor's counted.
        """
        shape = self.source.spec(name).shape
        step = rows_per_chunk(shape[1]) if len(shape) > 1 else shape[0]
        strange = 0
        for rows in self.source.rows(name, step):
            strange += count_not_finite(rows)
            if finite and strange:
                require_finite(self.source.tensor(name), self._name(name))
            yield rows
            self.done += rows.nbytes
            self.report(ProgressEvent("convert", self.done, self.total, "B"))
        warn_not_finite(self._name(name), strange)

    def _name(self, tensor: str) -> str:
        return self.source.describe(tensor)
