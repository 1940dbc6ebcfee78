"""What a model will take in each mode: on disk, to convert, to build, to run. Loads no weights, prints nothing.

Every figure comes from the function that the command itself goes by: :func:`workbench.quantization.convert.plan_of`,
:func:`workbench.engine.needs.build_needs`, :func:`workbench.runtime.needs.run_needs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from workbench.checkpoint.available_memory import available_bytes
from workbench.checkpoint.dummy import dummy_bytes
from workbench.checkpoint.dummy_model import DummyModel
from workbench.checkpoint.rank_parts import every_rank, rank_parts, total_bytes
from workbench.checkpoint.unified_layout import checkpoint_tensors
from workbench.checkpoint.weight_source import WeightSource
from workbench.engine.needs import AUTO, BuildJob, BuildNeeds, build_needs
from workbench.model.config import ModelConfig
from workbench.quantization.convert import open_source, plan_of
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.needs import RunJob, RunNeeds, run_needs


@dataclass(frozen=True)
class Ranks:
    """How a model is spread."""

    tp_size: int = 1
    pp_size: int = 1


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        ranks: over how many devices.
        verify: how much of the network a build checks.
        every_mode: plan the usual modes beside the recipe's own.
    """

    ranks: Ranks = Ranks()
    verify: str = AUTO
    every_mode: bool = True


@dataclass(frozen=True)
class PartSize:
    """Like parts of a model together: all layers' ``mlp.down``, the embedding.

    Attributes:
        part: which.
        kind: how they are stored.
        parameters: values, without scales and biases.
        bytes: with them.
    """

    part: str
    kind: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ModePlan:
    """One mode.

    Attributes:
        name: in words.
        recipe: the mode.
        parts: of the whole model.
        rank_bytes: weights of each rank.
        convert_disk_bytes, convert_memory_bytes: of the conversion; None where the weights are converted already.
        build: of the rank that needs the most.
        run: of the rank that needs the most on a GPU.
    """

    name: str
    recipe: Recipe
    parts: tuple[PartSize, ...]
    rank_bytes: tuple[int, ...]
    convert_disk_bytes: int | None
    convert_memory_bytes: int | None
    build: BuildNeeds
    run: RunNeeds


@dataclass(frozen=True)
class ModelPlan:
    """The table.

    Attributes:
        config: the model.
        parameters: of the whole model, biases and norms included.
        ranks: over how many devices it is spread.
        modes: one row each.
        available_bytes: memory that this machine has left; None where it does not tell.
    """

    config: ModelConfig
    parameters: int
    ranks: Ranks
    modes: tuple[ModePlan, ...]
    available_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        rows = []
        for mode in self.modes:
            row = {**asdict(mode), "recipe": mode.recipe.to_dict()}
            row["build"]["memory_bytes"] = mode.build.memory_bytes
            rows.append(row)
        return {**asdict(self), "modes": rows}


def plan_source(model: str | WeightSource, recipe: Recipe, options: PlanOptions | None = None) -> ModelPlan:
    """Plan from a model as it was published, or from dummy weights.

    Args:
        model: its folder, of which headers are read, or dummy weights.
        recipe: dtype and limits of every mode, and a mode of its own where it quantizes.
        options: ranks and modes.

    Raises:
        CheckpointError: the model's folder is not usable.
        RecipeError: the recipe does not fit the model.
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    options = options or PlanOptions()
    source = open_source(model, recipe)
    dummy = isinstance(source, DummyModel)
    modes = []
    for each in _recipes(recipe, every_mode=options.every_mode):
        conversion = plan_of(source, each)
        held = dummy_bytes(checkpoint_tensors(source.config, each)) if dummy else 0
        build = BuildJob(source.config, each, options.verify, held_bytes=held, with_checkpoint=not dummy)
        mode = _mode(build, options.ranks)
        modes.append(
            replace(mode, convert_disk_bytes=conversion.disk_bytes, convert_memory_bytes=conversion.memory_bytes)
        )
        parameters = conversion.parameters
    return ModelPlan(source.config, parameters, options.ranks, tuple(modes), available_bytes())


def plan_checkpoint(
    config: ModelConfig, recipe: Recipe, options: PlanOptions | None = None, held_bytes: int = 0
) -> ModelPlan:
    """Plan from a checkpoint, whose mode is decided.

    Args:
        config, recipe: of the checkpoint.
        options: ranks.
        held_bytes: memory of its weights where no file backs them.

    Raises:
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    options = options or PlanOptions()
    mode = _mode(BuildJob(config, recipe, options.verify, held_bytes=held_bytes), options.ranks)
    dense = plan_of(DummyModel(config), Recipe())
    return ModelPlan(config, dense.parameters, options.ranks, (mode,), available_bytes())


def mode_name(recipe: Recipe) -> str:
    """A mode in words: "float16", "int4 group 128 + int8 KV"."""
    weights = recipe.weights
    match weights:
        case None:
            name = recipe.dtype
        case Int4WeightOnly():
            name = f"int4 group {weights.group_size}" if weights.group_size else "int4 per channel"
        case SmoothQuant():
            name = f"smoothquant {weights.activation}".replace("_", " ")
        case Int8WeightOnly():
            name = "int8"
    return name + (" + int8 KV" if recipe.kv_cache is not None else "")


def _recipes(recipe: Recipe, *, every_mode: bool) -> list[Recipe]:
    """The recipe's own mode first, then the usual ones, none twice."""
    usual = [None, Int8WeightOnly(), Int4WeightOnly(), SmoothQuant()] if every_mode else []
    modes = [recipe, *(replace(recipe, weights=weights, kv_cache=None, keep=("lm_head",)) for weights in usual)]
    if every_mode:
        modes.append(replace(recipe, weights=Int8WeightOnly(), kv_cache=Int8KVCache(), keep=("lm_head",)))
    return list({mode_name(mode): mode for mode in reversed(modes)}.values())[::-1]


def _mode(job: BuildJob, ranks: Ranks) -> ModePlan:
    config, recipe = job.config, job.recipe
    mappings = list(every_rank(ranks.tp_size, ranks.pp_size))
    builds = [build_needs(replace(job, mapping=mapping)) for mapping in mappings]
    runs = [run_needs(RunJob(config, recipe, mapping)) for mapping in mappings]
    return ModePlan(
        name=mode_name(recipe),
        recipe=recipe,
        parts=tuple(_part_sizes(config, recipe)),
        rank_bytes=tuple(total_bytes(rank_parts(config, recipe, mapping)) for mapping in mappings),
        convert_disk_bytes=None,
        convert_memory_bytes=None,
        build=max(builds, key=lambda needs: needs.memory_bytes),
        run=max(runs, key=lambda needs: needs.gpu_bytes),
    )


def _part_sizes(config: ModelConfig, recipe: Recipe) -> Sequence[PartSize]:
    sizes: dict[tuple[str, str], PartSize] = {}
    for part in rank_parts(config, recipe):
        key = part.site, part.kind
        held = sizes.get(key, PartSize(*key, 0, 0))
        sizes[key] = replace(held, parameters=held.parameters + part.elements, bytes=held.bytes + part.bytes)
    return list(sizes.values())
