"""``workbench build``: our checkpoint -> a TensorRT engine whose network was checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.amounts import size
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.recipe_flags import GivenRecipe, add_recipe_flags, flag_of, given_recipe

if TYPE_CHECKING:
    from workbench.engine.build import BuildReport
    from workbench.recipe import Recipe

VERIFY = ("full", "sample", "off")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_dir", type=Path, required=True, metavar="CKPT", help="what 'convert' wrote")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="ENG", help="engine folder to write")
    parser.add_argument(
        "--verify",
        choices=VERIFY,
        default="full",
        help="execute the network on the CPU and compare it with the model: all layers, some, or not (default: full)",
    )
    parser.add_argument("--force", action="store_true", help="replace ENG")
    add_recipe_flags(parser, default="as converted")


def _run(args: argparse.Namespace) -> Outcome:
    from workbench.checkpoint.unified import load_checkpoint

    converted = load_checkpoint(args.checkpoint_dir).recipe
    given = given_recipe(args, base=converted)
    _require_as_converted(given, converted, args)
    for replacement in given.replacements:
        print(replacement)

    from workbench.engine.build import BuildOptions, build_engine

    options = BuildOptions(limits=given.recipe.build, verify=args.verify, force=args.force)
    with ProgressBars() as progress:
        report = build_engine(args.checkpoint_dir, args.output_dir, options, progress)
    _print(report)
    result = {"engine_dir": args.output_dir, "replaced": list(map(str, given.replacements)), **report.to_dict()}
    return Outcome(result, passed=report.passed)


def _require_as_converted(given: GivenRecipe, converted: Recipe, args: argparse.Namespace) -> None:
    """A checkpoint is already quantized: what was decided then can only be confirmed now."""
    wanted, stored = given.recipe.to_dict(), converted.to_dict()
    for section, name in sorted(given.stated):
        if section == "build" or wanted[name] == stored[name]:
            continue
        raise UsageError(
            f"{flag_of(section, name)} (or the recipe's {name!r}) asks for {wanted[name]!r}, "
            f"but {args.checkpoint_dir} was converted with {stored[name]!r}",
            fix="convert again with 'workbench convert', or leave it out",
        )


def _print(report: BuildReport) -> None:
    print(
        f"built {report.engine_dir} with {report.product} {report.version}: "
        f"{size(report.plan_bytes)} in {report.seconds:.1f} s"
    )
    if report.linears is not None and len(report.linears):
        print("\nlinear layers, as asked for and as compiled:")
        groups = report.linears.groupby(["asked", "compiled"], sort=False).size().rename("layers")
        print(groups.reset_index().to_string(index=False))
    if report.check is None:
        print("\nnetwork check: off; nothing is known about this engine's results")
        return
    verdict = "passed" if report.check.passed else "FAILED"
    worst = report.check.worst
    print(
        f"\nnetwork check: {verdict}, {len(report.check.frame)} taps; worst {worst['tap']}: error against float64 "
        f"{worst['network_error']:.2e}, {worst['ratio']:.2f} times the torch op set's own"
    )
    print(report.check.limits_text)


COMMAND = Command(
    name="build",
    summary="Build a TensorRT engine from a checkpoint and check its network on the CPU.",
    example="""
workbench build --checkpoint_dir demo/checkpoint --output_dir demo/engine --targets sm86 sm89 --max_batch_size 4
""",
    add_flags=_add_flags,
    run=_run,
)
