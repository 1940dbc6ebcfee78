"""The two steps of a calibrated checkpoint: a model and its ranges -> it, and it and a recipe -> a quantized one.

A calibrated checkpoint holds weights in the dtype with the smoothing folded in, and the ranges of that smoothed model:
every quantization can still be chosen, without the original model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from workbench.checkpoint import unified_layout as layout
from workbench.checkpoint.available_memory import require_memory
from workbench.checkpoint.output_folder import check_apart, check_output, output_folder
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import CALIBRATED, UnifiedConfig, rank_file, write_unified_config
from workbench.checkpoint.weight_source import WeightSource
from workbench.errors import CheckpointError, RecipeError
from workbench.progress import Reporter, silent
from workbench.quantization.convert import (
    BYTES_PER_CHUNK_VALUE,
    CONFIG_BYTES,
    ConversionPlan,
    check_recipe,
    check_smoothing,
    dense_weights,
    layer_bytes,
    model_name,
    open_source,
    plan_of,
)
from workbench.quantization.layer_conversion import LayerConversion, Quantization
from workbench.quantization.observed import check_fits
from workbench.quantization.quantize import CHUNK_VALUES
from workbench.quantization.ranges import RANGES_FILE, ActivationRanges
from workbench.quantization.smoothed_ranges import smoothed_fingerprint
from workbench.recipe import Recipe, SmoothQuant, WeightQuantization

# Names, element types and offsets of a tensor in a header.
_HEADER_BYTES_PER_TENSOR = 256


@dataclass(frozen=True)
class CalibratedOptions:
    """What a calibrated checkpoint is made with.

    Attributes:
        dtype: of the weights.
        smoothing: alpha and groups to fold in; None for none. Its granularities do not matter yet.
        max_positions: as in a recipe.
    """

    dtype: str = "float16"
    smoothing: SmoothQuant | None = None
    max_positions: int = 0

    @property
    def recipe(self) -> Recipe:
        """What its tensors are: dense."""
        return Recipe(dtype=self.dtype, max_positions=self.max_positions)


def plan_calibrated(
    model_dir: str | Path | WeightSource, ranges: ActivationRanges, options: CalibratedOptions | None = None
) -> ConversionPlan:
    """What :func:`convert_calibrated` will take; reads the config and headers only.

    Raises:
        CheckpointError: the model's folder is not usable.
    """
    options = options or CalibratedOptions()
    source = open_source(model_dir, options.recipe)
    plan = plan_of(source, options.recipe)
    tensors = ranges.tensors().values()
    ranges_bytes = sum(tensor.nbytes + _HEADER_BYTES_PER_TENSOR for tensor in tensors)
    return replace(
        plan,
        disk_bytes=plan.disk_bytes + ranges_bytes,
        memory_bytes=plan.memory_bytes + 2 * layer_bytes(source.config) + ranges_bytes,
    )


def convert_calibrated(
    model_dir: str | Path | WeightSource,
    out: Path,
    ranges: ActivationRanges,
    options: CalibratedOptions | None = None,
    *,
    force: bool = False,
    report: Reporter = silent,
) -> Checkpoint:
    """Write a calibrated checkpoint; ``out`` appears whole or, on any error or Ctrl-C, not at all.

    Args:
        model_dir: the Hugging Face folder, or another source of weights.
        out: the checkpoint's folder.
        ranges: what calibration saw of this model.
        options: dtype and smoothing; float16 and none by default.
        force: replace an existing checkpoint.
        report: told the bytes that are done.

    Raises:
        CheckpointError: the source is not usable, a value does not fit the dtype, ``out`` exists or lies in the source,
            the disk is too small, or the ranges are of another model.
        RecipeError: the smoothing names a layer that the model does not have.
        ResourceError: this machine has too little memory for it.
    """
    options, out = options or CalibratedOptions(), Path(out)
    recipe = replace(options.recipe, model=model_name(model_dir))
    smoothing = options.smoothing if options.smoothing and options.smoothing.groups else None
    source = open_source(model_dir, recipe)
    if smoothing is not None:
        check_smoothing(smoothing, source.config)
    check_apart(source.location, out)
    fingerprint = source.fingerprint()
    ranges.require_model(fingerprint)
    check_fits(ranges, source.config)
    plan = plan_calibrated(model_dir, ranges, options)
    needed_bytes = plan.disk_bytes
    check_output(out, force=force, needed_bytes=needed_bytes)
    require_memory(plan.memory_bytes, "the conversion", fix="convert on a machine with more memory")
    with output_folder(out, force=force, needed_bytes=needed_bytes) as folder:
        with SafetensorsWriter(folder / rank_file(0), layout.checkpoint_tensors(source.config, recipe)) as writer:
            how = Quantization(recipe, ranges, smoothing)
            smoothed = LayerConversion(source.config, dense_weights(source), how, writer, report).run()
        assert smoothed is not None
        smoothed.save(folder / RANGES_FILE)
        config = UnifiedConfig(
            source.config,
            recipe,
            {"fingerprint": fingerprint},
            (writer.checksum,),
            smoothing,
            ranges_checksum={RANGES_FILE: SafetensorsFile(folder / RANGES_FILE).checksum()},
        )
        write_unified_config(folder, config)
    return load_checkpoint(out)


def calibrated_ranges(checkpoint: Checkpoint) -> ActivationRanges:
    """The ranges that lie in a calibrated checkpoint: of its weights as they are, smoothing included.

    Raises:
        CheckpointError: the checkpoint is not a calibrated one, or its ranges are missing or of another model.
    """
    if checkpoint.state != CALIBRATED:
        raise CheckpointError(
            f"{checkpoint.folder} is a {checkpoint.state} checkpoint",
            allowed="a calibrated one",
            fix="make one with 'workbench convert' and -sq or -kv, or build from this one as it is",
        )
    ranges = ActivationRanges.load(checkpoint.folder / RANGES_FILE)
    ranges.require_model(smoothed_fingerprint(checkpoint.fingerprint, checkpoint.smoothing))
    check_fits(ranges, checkpoint.config)
    return ranges


def plan_quantized(folder: str | Path, recipe: Recipe) -> ConversionPlan:
    """What :func:`quantize_calibrated` will take; reads the config and headers only.

    Raises:
        CheckpointError: ``folder`` is no checkpoint.
    """
    source = load_checkpoint(folder)
    specs = layout.checkpoint_tensors(source.config, recipe).values()
    return ConversionPlan(
        disk_bytes=sum(spec.bytes + _HEADER_BYTES_PER_TENSOR for spec in specs) + CONFIG_BYTES,
        # The integers of the widest layer are whole in memory, what they are made from is mapped.
        memory_bytes=max(spec.bytes for spec in specs) + CHUNK_VALUES * BYTES_PER_CHUNK_VALUE,
        parameters=sum(spec.elements for spec in layout.checkpoint_tensors(source.config, source.recipe).values()),
    )


def quantize_calibrated(
    folder: str | Path, recipe: Recipe, out: Path, *, force: bool = False, report: Reporter = silent
) -> Checkpoint:
    """Quantize a calibrated checkpoint by a recipe; what it holds is not smoothed any further.

    The result's recipe states the smoothing that is in the weights, whatever alpha and groups ``recipe`` names.

    Args:
        folder: the calibrated checkpoint.
        recipe: how to quantize.
        out: the quantized checkpoint's folder.
        force: replace an existing checkpoint.
        report: told the bytes that are done.

    Raises:
        CheckpointError: ``folder`` is no calibrated checkpoint, a value does not fit the dtype, ``out`` exists or lies
            in ``folder``, or the disk is too small.
        RecipeError: the recipe does not fit the model.
        ResourceError: this machine has too little memory for it.
    """
    source, out = load_checkpoint(folder), Path(out)
    ranges = calibrated_ranges(source)
    recipe = replace(
        recipe,
        model=source.recipe.model,
        weights=_with_smoothing_of(source, recipe.weights),
        max_positions=_positions_of(source, recipe),
    )
    check_recipe(recipe, source.config)
    check_apart(source.folder, out)
    tensors = layout.checkpoint_tensors(source.config, recipe)
    plan = plan_quantized(folder, recipe)
    needed_bytes = plan.disk_bytes
    check_output(out, force=force, needed_bytes=needed_bytes)
    require_memory(plan.memory_bytes, "quantizing", fix="quantize on a machine with more memory")
    with output_folder(out, force=force, needed_bytes=needed_bytes) as new:
        with SafetensorsWriter(new / rank_file(0), tensors) as writer:
            LayerConversion(source.config, source.weights, Quantization(recipe, ranges), writer, report).run()
        origin = {"fingerprint": source.fingerprint, "checkpoint": source.checksum}
        write_unified_config(new, UnifiedConfig(source.config, recipe, origin, (writer.checksum,), source.smoothing))
    return load_checkpoint(out)


def _positions_of(source: Checkpoint, recipe: Recipe) -> int:
    """What the calibrated checkpoint was made for: its config has that base already."""
    done = source.recipe.max_positions
    if recipe.max_positions not in (0, done):
        raise RecipeError(
            f"max_positions is {recipe.max_positions}, but {source.folder} was converted with {done}",
            fix="leave it out, or convert the model again with it",
        )
    return done


def _with_smoothing_of(source: Checkpoint, weights: WeightQuantization | None) -> WeightQuantization | None:
    """SmoothQuant as it was done; what else a recipe may ask for does not speak of smoothing."""
    if not isinstance(weights, SmoothQuant):
        return weights
    done = source.smoothing
    if done is None:
        return replace(weights, groups=(), alpha_by_group={})
    return replace(weights, alpha=done.alpha, groups=done.groups, alpha_by_group=done.alpha_by_group)
