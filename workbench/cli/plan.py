"""``workbench plan``: what a model will take on disk and in memory, in each mode, before anything is made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.amounts import count, size
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.dummy_flags import add_dummy_flags, model_or_dummies, require_no_preset
from workbench.cli.recipe_flags import GivenRecipe, add_recipe_flags, given_recipe

if TYPE_CHECKING:
    from workbench.evaluation.plan import ModelPlan, ModePlan, PartSize, PlanOptions
    from workbench.model.config import ModelConfig
    from workbench.recipe import Recipe

VERIFY = ("auto", "full", "sample", "off")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_dir", type=Path, metavar="CKPT", help="what 'convert' wrote, in its own mode")
    ranks = parser.add_argument_group("ranks")
    ranks.add_argument("--tp_size", type=int, default=1, metavar="N", help="tensor parallel ranks (default: 1)")
    ranks.add_argument("--pp_size", type=int, default=1, metavar="N", help="pipeline stages (default: 1)")
    parser.add_argument(
        "--verify", choices=VERIFY, default="auto", help="how much of its network a build checks (default: auto)"
    )
    add_dummy_flags(parser)
    add_recipe_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    from workbench.evaluation.plan import PlanOptions, Ranks

    for name in ("tp_size", "pp_size"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}", allowed="whole numbers from 1")
    options = PlanOptions(Ranks(args.tp_size, args.pp_size), args.verify)
    plan, notes = (_of_model if args.checkpoint_dir is None else _of_checkpoint)(args, options)
    for line in (*notes, *_lines(plan)):
        print(line)
    return Outcome({**plan.to_dict(), "notes": notes})


def _of_checkpoint(args: argparse.Namespace, options: PlanOptions) -> tuple[ModelPlan, list[str]]:
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.evaluation.plan import plan_checkpoint

    require_no_preset(args, "--checkpoint_dir")
    checkpoint = load_checkpoint(args.checkpoint_dir)
    given = given_recipe(args, base=checkpoint.recipe)
    chosen = sorted(name for section, name in given.stated if section != "build")
    if chosen:
        raise UsageError(
            f"--checkpoint_dir beside a choice of {', '.join(chosen)}",
            allowed="limits, such as --max_batch_size: the rest was decided when it was converted",
            fix="plan from the model to compare modes: --model_dir",
        )
    recipe, notes = _fitted(checkpoint.config, given)
    return plan_checkpoint(checkpoint.config, recipe, options, checkpoint.held_bytes), notes


def _of_model(args: argparse.Namespace, options: PlanOptions) -> tuple[ModelPlan, list[str]]:
    from workbench.evaluation.plan import plan_source
    from workbench.quantization.convert import open_source

    given = given_recipe(args)
    model = model_or_dummies(args, given.recipe.model)
    if model is None:
        raise UsageError("no model is named", allowed="--preset, --model_dir or --checkpoint_dir")
    source = open_source(model, given.recipe)
    recipe, notes = _fitted(source.config, given)
    # Who names a quantization asks about that one.
    chosen = {"weights", "kv_cache"} & {name for _, name in given.stated}
    return plan_source(source, recipe, replace(options, every_mode=not chosen)), notes


def _fitted(config: ModelConfig, given: GivenRecipe) -> tuple[Recipe, list[str]]:
    """The recipe with limits that the model has positions for, as a build would have them; and what gave way."""
    from workbench.runtime.limits import fitting_limits, lowering

    stated = frozenset(name for section, name in given.stated if section == "build")
    limits = fitting_limits(given.recipe.build, config, stated)
    lowered = lowering(given.recipe.build, limits, config)
    notes = [*map(str, given.replacements), *([lowered] if lowered else [])]
    return replace(given.recipe, build=limits), notes


def _lines(plan: ModelPlan) -> Iterator[str]:
    config, limits = plan.config, plan.modes[0].recipe.build
    heads = f"{config.num_heads} heads ({config.num_kv_heads} key/value)"
    yield (
        f"{config.architecture}, {count(plan.parameters)} parameters: {config.num_layers} layers, hidden "
        f"{config.hidden_size}, {heads}, intermediate {config.intermediate_size}, vocabulary {config.vocab_size}"
    )
    yield f"limits: batch {limits.max_batch_size}, {limits.max_input_len} + {limits.max_output_len} tokens"
    tp_size, pp_size = plan.ranks.tp_size, plan.ranks.pp_size
    if tp_size * pp_size > 1:
        yield f"ranks: {tp_size * pp_size} (tp_size {tp_size} x pp_size {pp_size}); each figure is of the largest"
    yield ""
    yield from _table(_PART_TITLES, [_part_row(part) for part in plan.modes[0].parts])
    yield ""
    yield from _table(_MODE_TITLES, [_mode_row(mode) for mode in plan.modes])
    yield "memory beside mapped weights (the page cache, which the system can take back) and the interpreter's own"
    yield from _wide_caches(plan)
    yield ""
    if plan.available_bytes is not None:
        yield f"this machine has {size(plan.available_bytes)} of memory available; {_fits(plan, plan.available_bytes)}"


def _wide_caches(plan: ModelPlan) -> Iterator[str]:
    """What a cache takes on the CPU, where it is wider than the column KV/token says."""
    runs = [mode.run for mode in plan.modes]
    wide = [run.cpu_kv_bytes_per_token for run in runs if run.cpu_kv_bytes_per_token != run.kv_bytes_per_token]
    if not wide:
        return
    limits = plan.modes[0].recipe.build
    tokens = limits.max_batch_size * limits.max_seq_len
    yield (
        f"run on CPU: a KV cache that is not INT8 is held in float32, the fastest to read there: {size(wide[0])} a "
        f"token, {size(wide[0] * tokens)} for {tokens:,} tokens"
    )


_PART_TITLES = ("part", "stored as", "parameters", "size")


def _part_row(part: PartSize) -> Sequence[str]:
    return part.part, part.kind, count(part.parameters), size(part.bytes)


_MODE_TITLES = (
    *("mode", "weights", "KV/token", "convert disk", "convert memory", "build disk", "build memory"),
    *("run on CPU", "run on GPU"),
)


def _mode_row(mode: ModePlan) -> Sequence[str]:
    converted = [None if each is None else size(each) for each in (mode.convert_disk_bytes, mode.convert_memory_bytes)]
    return (
        mode.name,
        size(max(mode.rank_bytes)),
        size(mode.run.kv_bytes_per_token),
        *(each or "done" for each in converted),
        size(mode.build.disk_bytes),
        size(mode.build.memory_bytes),
        size(mode.run.cpu_bytes),
        size(mode.run.gpu_bytes),
    )


def _fits(plan: ModelPlan, available: int) -> str:
    """Which modes can be built here."""
    from workbench.checkpoint.available_memory import fits

    fitting = [mode.name for mode in plan.modes if fits(mode.build.memory_bytes, available)]
    if len(fitting) == len(plan.modes):
        return "every build fits" if len(fitting) > 1 else "the build fits"
    return "builds that fit: " + (", ".join(fitting) or "none")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell; all but the first aligned to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


COMMAND = Command(
    name="plan",
    summary="Say what a model will take on disk and in memory, in each mode, without loading it.",
    example="""
workbench plan --preset internlm-7b
workbench plan --preset internlm-20b --weights int4 --tp_size 2 --pp_size 2
workbench plan --model_dir demo/model --max_batch_size 4
""",
    add_flags=_add_flags,
    run=_run,
)
