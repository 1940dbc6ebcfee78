"""``workbench build``: a checkpoint, a calibrated one, a model or dummy weights -> a checked TensorRT engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.amounts import size
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.dummy_flags import (
    add_dummy_flags,
    described,
    dummy_config,
    require_no_preset,
    sizes_of_the_model,
)
from workbench.cli.original_flags import add_original_flags, check_ranks, explained, to_recipe_flags
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.recipe_flags import GivenRecipe, add_recipe_flags, destination_of, flag_of, given_recipe
from workbench.model.presets import DEFAULT_PRESET
from workbench.recipe import Recipe

if TYPE_CHECKING:
    from workbench.engine.build import BuildOptions, BuildReport
    from workbench.engine.needs import BuildJob, BuildNeeds
    from workbench.model.config import ModelConfig
    from workbench.progress import Reporter

VERIFY = ("auto", "full", "sample", "off")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="build what 'convert' wrote, as it is")
    parser.add_argument(
        "--ft_model_dir", type=Path, metavar="CAL", help="or quantize what 'convert' with -sq or -kv wrote, and build"
    )
    parser.add_argument("--output_dir", type=Path, required=True, metavar="ENG", help="engine folder to write")
    parser.add_argument(
        "--verify",
        choices=VERIFY,
        default="auto",
        help="execute the network on the CPU and compare it with the model: all layers, the first, the middle and the "
        "last, or none (default: all up to a billion parameters, some beyond)",
    )
    parser.add_argument("--force", action="store_true", help="replace ENG")
    parser.add_argument("--ignore_memory", action="store_true", help="build even if memory is said not to suffice")
    add_dummy_flags(parser, default=DEFAULT_PRESET)
    add_recipe_flags(parser, default="as converted")
    add_original_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    check_ranks(args)
    notes = [*to_recipe_flags(args), *explained(args)]
    if args.checkpoint_dir is not None and args.ft_model_dir is not None:
        raise UsageError("--checkpoint_dir and --ft_model_dir are both given", fix="give one of them")
    source = _source(args)
    _check_apart(args)
    notes += source.notes
    recipe = _fitted(source, notes)
    notes = [*map(str, source.given.replacements), *notes]
    for note in notes:
        print(note, flush=True)

    from workbench.engine.build import BuildOptions
    from workbench.engine.needs import build_needs

    job = source.job(recipe)
    needs = build_needs(job)
    _announce(job, needs)
    options = BuildOptions(recipe.build, args.verify, force=args.force, ignore_memory=args.ignore_memory)
    with ProgressBars() as progress:
        report = source.build(recipe, options, progress)
    _print(report)
    _warn_of_deviations(report)
    replaced = list(map(str, source.given.replacements))
    result = {"engine_dir": args.output_dir, "recipe": recipe.to_dict(), "replaced": replaced, "notes": notes}
    needed = {"needed_disk_bytes": needs.disk_bytes, "needed_memory_bytes": needs.memory_bytes}
    return Outcome({**result, **needed, **report.to_dict()})


def _check_apart(args: argparse.Namespace) -> None:
    """Refuse to write over anything that is read, before a word of what is planned."""
    from workbench.checkpoint.output_folder import check_apart

    for source in (args.checkpoint_dir, args.ft_model_dir, getattr(args, destination_of("", "model")), args.recipe):
        check_apart(None if source is None else Path(source), args.output_dir)


@dataclass(frozen=True)
class _Source:
    """What is built from.

    Attributes:
        given: the recipe, of the file and the flags.
        config: the model's sizes.
        job: what building by a recipe means for the machine.
        build: builds the engine by that recipe.
        notes: what a person should know of it.
    """

    given: GivenRecipe
    config: ModelConfig
    job: Callable[[Recipe], BuildJob]
    build: Callable[[Recipe, BuildOptions, Reporter], BuildReport]
    notes: tuple[str, ...] = ()


def _source(args: argparse.Namespace) -> _Source:
    """Whatever is named, and dummy weights where nothing is."""
    if args.checkpoint_dir is not None:
        require_no_preset(args, "--checkpoint_dir")
        source = _as_it_is(args)
    elif args.ft_model_dir is not None:
        require_no_preset(args, "--ft_model_dir")
        source = _from_calibrated(args)
    else:
        given = given_recipe(args)
        if not given.recipe.model:
            return _from_dummy(args, given)
        require_no_preset(args, "--model_dir")
        source = _from_model(args, given)
    return replace(source, notes=tuple(sizes_of_the_model(args)))


def _as_it_is(args: argparse.Namespace) -> _Source:
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.build import build_engine
    from workbench.engine.needs import BuildJob

    checkpoint = load_checkpoint(args.checkpoint_dir)
    given = given_recipe(args, base=checkpoint.recipe)
    _require_as_converted(given, checkpoint.recipe, args)
    return _Source(
        replace(given, recipe=replace(given.recipe, model=checkpoint.recipe.model)),
        checkpoint.config,
        lambda recipe: BuildJob(checkpoint.config, recipe, args.verify, held_bytes=checkpoint.held_bytes),
        lambda _, how, report: build_engine(args.checkpoint_dir, args.output_dir, how, report),
    )


def _from_calibrated(args: argparse.Namespace) -> _Source:
    if getattr(args, destination_of("", "model")) is not None:
        raise UsageError("--ft_model_dir and --model_dir are both given", fix="give one of them")

    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.prepare import build_from_calibrated, build_job, require_calibrated

    checkpoint = load_checkpoint(args.ft_model_dir)
    given = given_recipe(args, base=checkpoint.recipe)
    require_calibrated(checkpoint, given.recipe)
    if given.recipe.weights is None and given.recipe.kv_cache is None:
        print(
            f"nothing is quantized: {args.ft_model_dir} is calibrated, and neither --use_smooth_quant, "
            "--use_weight_only, --int8_kv_cache nor a recipe asks for more",
        )
    return _Source(
        given,
        checkpoint.config,
        lambda recipe: build_job(checkpoint.config, recipe, args.verify, dummy=False),
        lambda recipe, how, report: build_from_calibrated(args.ft_model_dir, recipe, args.output_dir, how, report),
    )


def _from_model(args: argparse.Namespace, given: GivenRecipe) -> _Source:
    from workbench.checkpoint.huggingface import HFCheckpoint
    from workbench.engine.prepare import build_from_model, build_job
    from workbench.model.rotary import stretched

    model = given.recipe.model
    config = stretched(HFCheckpoint.open(model).config, given.recipe.max_positions)
    return _Source(
        given,
        config,
        lambda recipe: build_job(config, recipe, args.verify, dummy=False),
        lambda recipe, how, report: build_from_model(model, recipe, args.output_dir, how, report),
    )


def _from_dummy(args: argparse.Namespace, given: GivenRecipe) -> _Source:
    """As the original does where no checkpoint is named."""
    from workbench.engine.prepare import build_from_dummy, build_job
    from workbench.model.rotary import stretched

    config = dummy_config(args, DEFAULT_PRESET)
    assert config is not None
    config = stretched(config, given.recipe.max_positions)
    return _Source(
        given,
        config,
        lambda recipe: build_job(config, recipe, args.verify, dummy=True),
        lambda recipe, how, report: build_from_dummy(config, recipe, args.output_dir, how, report),
        (f"no model is named: {described(args, DEFAULT_PRESET)}",),
    )


def _fitted(source: _Source, notes: list[str]) -> Recipe:
    """The recipe with limits that the model has positions for; says where they were lowered."""
    from workbench.engine.build import check_limits
    from workbench.runtime.limits import fitting_limits, lowering

    recipe, stated = source.given.recipe, {name for section, name in source.given.stated if section == "build"}
    limits = fitting_limits(recipe.build, source.config, frozenset(stated))
    lowered = lowering(recipe.build, limits, source.config)
    if lowered:
        notes.append(lowered)
    check_limits(limits, source.config)
    return replace(recipe, build=limits)


def _require_as_converted(given: GivenRecipe, converted: Recipe, args: argparse.Namespace) -> None:
    """A checkpoint is already quantized: what was decided then can only be confirmed now."""
    wanted, stored = given.recipe.to_dict(), converted.to_dict()
    for section, name in sorted(given.stated):
        # Which model it was is told by the checkpoint itself; another spelling of its path changes nothing.
        if section == "build" or (section, name) == ("", "model"):
            continue
        # A field of a kind is as converted when the whole of that kind is.
        place = section or name
        if wanted[place] == stored[place]:
            continue
        raise UsageError(
            f"{flag_of(section, name)} (or the recipe's {place!r}) asks for {wanted[place]!r}, "
            f"but {args.checkpoint_dir} was converted with {stored[place]!r}",
            fix="convert again with 'workbench convert', or leave it out",
        )


def _announce(job: BuildJob, needs: BuildNeeds) -> None:
    from workbench.engine.needs import OFF, SAMPLE, how_verified, sampled_layers

    verify, layers = how_verified(job.config, job.verify), job.config.num_layers
    shares = []
    if verify != OFF:
        checked = len(sampled_layers(layers)) if verify == SAMPLE else layers
        check = f"{size(needs.check_bytes)} to check {checked} of {layers} layers and the head"
        shares.append(f"{check}, then {size(needs.builder_bytes)} for the builder")
    if needs.held_bytes:
        shares.append(f"{size(needs.held_bytes)} for dummy weights")
    told = f"plan: needs {size(needs.disk_bytes)} on disk and about {size(needs.memory_bytes)} of memory"
    print(": ".join([told, ", and ".join(shares)]) if shares else told, flush=True)


def _print(report: BuildReport) -> None:
    print(
        f"built {report.engine_dir} with {report.product} {report.version}: "
        f"{size(report.plan_bytes)} in {report.seconds:.1f} s"
    )
    print("\nlinear layers, as asked for and as compiled:")
    groups = report.linears.groupby(["asked", "compiled"], sort=False).size().rename("layers")
    print(groups.reset_index().to_string(index=False))
    if report.check is None:
        print("\nnetwork check: off; nothing is known about this engine's results")
        return
    worst = report.check.worst
    print(
        f"\nnetwork check: passed, {len(report.check.frame)} taps; worst {worst['tap']}: error against float64 "
        f"{worst['network_error']:.2e}, {worst['ratio']:.2f} times the torch op set's own"
    )
    print(report.check.limits_text)


def _warn_of_deviations(report: BuildReport) -> None:
    """An engine that computes otherwise than was asked for is slower or less exact than its recipe says."""
    for (asked, compiled), rows in report.deviations.groupby(["asked", "compiled"], sort=False):
        names = ", ".join(rows["linear"])
        print(f"workbench: warning: {asked} was asked for, {compiled} was compiled: {names}", file=sys.stderr)


COMMAND = Command(
    name="build",
    summary="Build a TensorRT engine and check its network on the CPU.",
    example="""
workbench build --model_dir demo/model --dtype float16 --use_weight_only --output_dir demo/int8_engine
workbench build --ft_model_dir demo/sq0.5/1-gpu --use_smooth_quant --per_token --per_channel --output_dir demo/sq_engine
workbench build --checkpoint_dir demo/checkpoint --output_dir demo/engine --targets sm86 sm89 --force
workbench build --preset internlm-7b --n_layer 4 --use_weight_only --output_dir demo/dummy_engine
""",
    add_flags=_add_flags,
    run=_run,
)
