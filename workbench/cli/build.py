"""``workbench build``: a checkpoint, a calibrated one or a model -> a TensorRT engine whose network was checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.amounts import size
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.original_flags import add_original_flags, check_ranks, explained, to_recipe_flags
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.recipe_flags import GivenRecipe, add_recipe_flags, destination_of, flag_of, given_recipe
from workbench.recipe import Recipe

if TYPE_CHECKING:
    from workbench.engine.build import BuildOptions, BuildReport
    from workbench.engine.needs import BuildNeeds
    from workbench.model.config import ModelConfig
    from workbench.progress import Reporter

VERIFY = ("full", "sample", "off")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="build what 'convert' wrote, as it is")
    parser.add_argument(
        "--ft_model_dir", type=Path, metavar="CAL", help="or quantize what 'convert' with -sq or -kv wrote, and build"
    )
    parser.add_argument("--output_dir", type=Path, required=True, metavar="ENG", help="engine folder to write")
    parser.add_argument(
        "--verify",
        choices=VERIFY,
        default="full",
        help="execute the network on the CPU and compare it with the model: all layers, some, or not (default: full)",
    )
    parser.add_argument("--force", action="store_true", help="replace ENG")
    add_recipe_flags(parser, default="as converted")
    add_original_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    check_ranks(args)
    notes = [*to_recipe_flags(args), *explained(args)]
    if args.checkpoint_dir is not None and args.ft_model_dir is not None:
        raise UsageError("--checkpoint_dir and --ft_model_dir are both given", fix="give one of them")
    if args.checkpoint_dir is not None:
        source = _as_it_is(args)
    elif args.ft_model_dir is not None:
        source = _from_calibrated(args)
    else:
        source = _from_model(args)
    recipe = _fitted(source, notes)
    notes = [*map(str, source.given.replacements), *notes]
    for note in notes:
        print(note, flush=True)

    from workbench.engine.build import BuildOptions
    from workbench.engine.needs import build_needs

    needs = build_needs(source.config, recipe, args.verify, with_checkpoint=args.checkpoint_dir is None)
    _announce(needs)
    options = BuildOptions(limits=recipe.build, verify=args.verify, force=args.force)
    with ProgressBars() as progress:
        report = source.build(recipe, options, progress)
    _print(report)
    _warn_of_deviations(report)
    replaced = list(map(str, source.given.replacements))
    result = {"engine_dir": args.output_dir, "recipe": recipe.to_dict(), "replaced": replaced, "notes": notes}
    needed = {"needed_disk_bytes": needs.disk_bytes, "needed_memory_bytes": needs.memory_bytes}
    return Outcome({**result, **needed, **report.to_dict()})


@dataclass(frozen=True)
class _Source:
    """What is built from.

    Attributes:
        given: the recipe, of the file and the flags.
        config: the model's sizes.
        build: builds the engine by that recipe.
    """

    given: GivenRecipe
    config: ModelConfig
    build: Callable[[Recipe, BuildOptions, Reporter], BuildReport]


def _as_it_is(args: argparse.Namespace) -> _Source:
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.build import build_engine

    checkpoint = load_checkpoint(args.checkpoint_dir)
    given = given_recipe(args, base=checkpoint.recipe)
    _require_as_converted(given, checkpoint.recipe, args)
    return _Source(
        replace(given, recipe=replace(given.recipe, model=checkpoint.recipe.model)),
        checkpoint.config,
        lambda _, how, report: build_engine(args.checkpoint_dir, args.output_dir, how, report),
    )


def _from_calibrated(args: argparse.Namespace) -> _Source:
    if getattr(args, destination_of("", "model")) is not None:
        raise UsageError("--ft_model_dir and --model_dir are both given", fix="give one of them")

    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.prepare import build_from_calibrated, require_calibrated

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
        lambda recipe, how, report: build_from_calibrated(args.ft_model_dir, recipe, args.output_dir, how, report),
    )


def _from_model(args: argparse.Namespace) -> _Source:
    given = given_recipe(args)
    model = given.recipe.model
    if not model:
        raise UsageError(
            "nothing to build from is named",
            allowed="--checkpoint_dir, --ft_model_dir or --model_dir",
            fix="for an engine of random weights make a model first: workbench demo-model OUT --random",
        )

    from workbench.checkpoint.huggingface import HFCheckpoint
    from workbench.engine.prepare import build_from_model

    return _Source(
        given,
        HFCheckpoint.open(model).config,
        lambda recipe, how, report: build_from_model(model, recipe, args.output_dir, how, report),
    )


def _fitted(source: _Source, notes: list[str]) -> Recipe:
    """The recipe with limits that the model has positions for; says where they were lowered."""
    from workbench.engine.prepare import fitting_limits

    recipe, stated = source.given.recipe, {name for section, name in source.given.stated if section == "build"}
    limits = fitting_limits(recipe.build, source.config, frozenset(stated))
    if limits != recipe.build:
        notes.append(
            f"max_input_len {limits.max_input_len} and max_output_len {limits.max_output_len}: lowered to the model's "
            f"{source.config.max_position_embeddings} positions"
        )
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


def _announce(needs: BuildNeeds) -> None:
    checking = f", {size(needs.check_bytes)} of it to check the network" if needs.check_bytes else ""
    print(
        f"plan: needs {size(needs.disk_bytes)} on disk and about {size(needs.memory_bytes)} of memory{checking}",
        flush=True,
    )


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
workbench build --model_dir demo/model --dtype float16 --use_weight_only --output_dir demo/engine
workbench build --ft_model_dir demo/sq/1-gpu --use_smooth_quant --per_token --per_channel --output_dir demo/engine
workbench build --checkpoint_dir demo/checkpoint --output_dir demo/engine --targets sm86 sm89 --max_batch_size 4
""",
    add_flags=_add_flags,
    run=_run,
)
