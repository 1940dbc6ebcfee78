"""``workbench convert``: a Hugging Face checkpoint and a recipe -> our unified checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from workbench.cli.amounts import count, size
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.recipe_flags import add_recipe_flags, given_recipe


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output_dir", type=Path, required=True, metavar="CKPT", help="checkpoint to write")
    parser.add_argument("--force", action="store_true", help="replace CKPT")
    add_recipe_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    given = given_recipe(args)
    for replacement in given.replacements:
        print(replacement)
    recipe = given.recipe
    if not recipe.model:
        raise UsageError("no model is named", fix="give --model_dir, or 'model:' in the recipe")

    from workbench.quantization.convert import convert, plan_conversion

    plan = plan_conversion(recipe.model, recipe)
    print(
        f"plan: {count(plan.parameters)} parameters; needs {size(plan.disk_bytes)} on disk "
        f"and about {size(plan.memory_bytes)} of memory",
        flush=True,
    )
    start = time.perf_counter()
    with ProgressBars() as report:
        checkpoint = convert(recipe.model, recipe, args.output_dir, force=args.force, report=report)
    seconds = time.perf_counter() - start
    weights = f"{recipe.weights.kind} weights, the rest in " if recipe.weights else ""
    print(f"wrote {args.output_dir}: {weights}{recipe.dtype}, {seconds:.1f} s")
    return Outcome(
        {
            "checkpoint_dir": args.output_dir,
            "recipe": recipe.to_dict(),
            "replaced": list(map(str, given.replacements)),
            "parameters": plan.parameters,
            "disk_bytes": plan.disk_bytes,
            "memory_bytes": plan.memory_bytes,
            "checksum": checkpoint.checksum,
            "seconds": seconds,
        }
    )


COMMAND = Command(
    name="convert",
    summary="Convert a Hugging Face checkpoint to ours, quantized as the recipe says.",
    example="""
workbench convert --model_dir demo/model --recipe data/recipes/int8_weight_only.yaml -o demo/checkpoint
workbench convert --model_dir demo/model --dtype float16 --weights none -o demo/float16
""",
    add_flags=_add_flags,
    run=_run,
)
