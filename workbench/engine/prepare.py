"""An engine from a model, a calibrated checkpoint or dummy weights: quantize into the engine's own folder, and build.

The folder holds ``checkpoint/`` beside the plan, so that it also runs where TensorRT does not. It appears whole or not
at all. The checkpoint of dummy weights is a config alone: they go into the network as they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.checkpoint.dummy import dummy_bytes
from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.output_folder import ENGINE, check_apart, check_output, output_folder
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import CALIBRATED
from workbench.checkpoint.unified_layout import checkpoint_tensors
from workbench.engine.build import BuildOptions, BuildReport, EnginePlace, write_engine
from workbench.engine.needs import BuildJob, build_needs, require_build_memory
from workbench.engine.product import product_for_building
from workbench.errors import CheckpointError, RecipeError
from workbench.model.config import ModelConfig
from workbench.model.rotary import stretched
from workbench.progress import Reporter, silent
from workbench.quantization.calibrated import quantize_calibrated
from workbench.quantization.convert import check_recipe, convert, ranges_needed_for
from workbench.recipe import Recipe, SmoothQuant

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Job:
    """One engine to make.

    Attributes:
        source: the Hugging Face folder or the calibrated checkpoint; None for dummy weights.
        config: its model.
        recipe: how to quantize, and the build limits.
        engine_dir: the folder to write.
    """

    source: Path | None
    config: ModelConfig
    recipe: Recipe
    engine_dir: Path


def build_from_model(
    model_dir: str | Path,
    recipe: Recipe,
    engine_dir: str | Path,
    options: BuildOptions | None = None,
    report: Reporter = silent,
) -> BuildReport:
    """Convert a Hugging Face model by a recipe that needs no ranges, and build.

    Raises:
        RecipeError: the recipe needs ranges, or does not fit the model.
        CheckpointError, BackendError, BuildError, GateError, Cancelled: as ``convert`` and ``build_engine``.
    """
    needed_for = ranges_needed_for(recipe)
    if needed_for is not None:
        raise RecipeError(
            f"the recipe asks for {needed_for}, which needs ranges, and {model_dir} is a model as it was published",
            fix="calibrate it first with 'workbench convert' and -sq ALPHA, -kv or both, and give what that writes as "
            "--ft_model_dir",
        )
    config = stretched(HFCheckpoint.open(model_dir).config, recipe.max_positions)
    job = Job(Path(model_dir), config, recipe, Path(engine_dir))
    return _make(job, lambda out: convert(model_dir, recipe, out, report=report), options, report)


def build_from_calibrated(
    checkpoint_dir: str | Path,
    recipe: Recipe,
    engine_dir: str | Path,
    options: BuildOptions | None = None,
    report: Reporter = silent,
) -> BuildReport:
    """Quantize a calibrated checkpoint by a recipe, and build.

    Raises:
        CheckpointError: it is no calibrated checkpoint; or SmoothQuant is asked for and it was not smoothed.
        RecipeError, BackendError, BuildError, GateError, Cancelled: as ``quantize_calibrated`` and ``build_engine``.
    """
    source = load_checkpoint(checkpoint_dir)
    require_calibrated(source, recipe)
    job = Job(Path(checkpoint_dir), source.config, recipe, Path(engine_dir))
    return _make(job, lambda out: quantize_calibrated(checkpoint_dir, recipe, out, report=report), options, report)


def build_from_dummy(
    config: ModelConfig,
    recipe: Recipe,
    engine_dir: str | Path,
    options: BuildOptions | None = None,
    report: Reporter = silent,
) -> BuildReport:
    """Build an engine of dummy weights; every recipe will do, ranges or not, since static scales are dummies too.

    Raises:
        RecipeError: the recipe does not fit the model.
        CheckpointError, ResourceError, BackendError, BuildError, GateError, Cancelled: as ``build_engine``.
    """
    recipe = replace(recipe, model="")
    job = Job(None, config, recipe, Path(engine_dir))
    return _make(job, lambda out: write_dummy_checkpoint(out, config, recipe), options, report)


def require_calibrated(source: Checkpoint, recipe: Recipe) -> None:
    """Refuse a checkpoint that cannot be quantized as a recipe says.

    Raises:
        CheckpointError: what is missing, and the command that makes it.
    """
    if source.state != CALIBRATED:
        raise CheckpointError(
            f"{source.folder} is a {source.state} checkpoint, and holds no ranges to quantize by",
            fix="give what 'workbench convert' with -sq ALPHA or -kv writes, or build this one as it is: "
            "--checkpoint_dir",
        )
    if isinstance(recipe.weights, SmoothQuant) and source.smoothing is None:
        raise CheckpointError(
            f"{source.folder} was calibrated but not smoothed, and SmoothQuant is asked for",
            fix="convert the model again with -sq ALPHA",
        )


def build_job(config: ModelConfig, recipe: Recipe, verify: str, *, dummy: bool) -> BuildJob:
    """What is needed to build from a model or a calibrated checkpoint, or from dummy weights."""
    held_bytes = dummy_bytes(checkpoint_tensors(config, recipe)) if dummy else 0
    return BuildJob(config, recipe, verify, held_bytes=held_bytes, with_checkpoint=not dummy)


def _make(
    job: Job, checkpoint_into: Callable[[Path], Checkpoint], options: BuildOptions | None, report: Reporter
) -> BuildReport:
    """The checkpoint and the plan, in one folder."""
    product_for_building()
    options = replace(options or BuildOptions(), limits=job.recipe.build)
    check_recipe(job.recipe, job.config)
    check_apart(job.source, job.engine_dir)
    needed = build_job(job.config, job.recipe, options.verify, dummy=job.source is None)
    needed_bytes = build_needs(needed).disk_bytes
    check_output(job.engine_dir, force=options.force, needed_bytes=needed_bytes, replaces=ENGINE)
    if not options.ignore_memory:
        require_build_memory(needed)
    with output_folder(job.engine_dir, force=options.force, needed_bytes=needed_bytes, replaces=ENGINE) as folder:
        checkpoint = checkpoint_into(folder / CHECKPOINT)
        place = EnginePlace(job.engine_dir, job.engine_dir / CHECKPOINT)
        return write_engine(folder, checkpoint, place, options, report)
