"""``workbench convert``: a model, or dummy weights -> our unified checkpoint, quantized by a recipe or calibrated."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.amounts import count, size
from workbench.cli.calibration_flags import add_pace_flags, add_text_flags, check_text_flags, text_paths, text_source
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.dummy_flags import add_dummy_flags, described, model_or_dummies
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.recipe_flags import GivenRecipe, add_recipe_flags, destination_of, given_recipe
from workbench.recipe import SmoothQuant

if TYPE_CHECKING:
    from workbench.checkpoint.dummy_model import DummyModel
    from workbench.checkpoint.unified import Checkpoint
    from workbench.quantization.calibrated import CalibratedOptions
    from workbench.quantization.convert import ConversionPlan
    from workbench.quantization.ranges import ActivationRanges

STORAGE_TYPES = {"fp16": "float16", "fp32": "float32", "bf16": "bfloat16"}
# Where the original writes the checkpoint of one rank.
ONE_RANK_FOLDER = "1-gpu"


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", "--in_file", dest=destination_of("", "model"), metavar="M", help="the same as --model_dir"
    )
    parser.add_argument("-o", "--output_dir", "--out_dir", type=Path, required=True, metavar="CKPT", help="to write")
    parser.add_argument("--force", action="store_true", help="replace CKPT")
    group = parser.add_argument_group(f"calibrated checkpoint: writes CKPT/{ONE_RANK_FOLDER}, quantized at build time")
    group.add_argument(
        "-sq", "--smoothquant", type=_alpha, metavar="ALPHA", help="fold SmoothQuant's smoothing into the weights"
    )
    group.add_argument("-kv", "--calibrate_kv_cache", action="store_true", help="see the ranges of keys and values")
    group.add_argument(
        *("-t", "--storage_type"),
        type=_storage_type,
        dest=destination_of("", "dtype"),
        metavar="{fp16,fp32,bf16}",
        help="the same as --dtype",
    )
    group.add_argument("-tp", "--tensor_parallelism", type=int, default=1, metavar="N", help="ranks: 1 for now")
    group.add_argument("-p", "--processes", type=int, metavar="N", help="taken, and of no effect: one process streams")
    text = parser.add_argument_group("calibration, where ranges are needed (default text: Python's language reference)")
    text.add_argument("--ranges", type=Path, metavar="DIR", help="what 'workbench calibrate' wrote; no other text then")
    add_text_flags(text)
    add_pace_flags(text)
    add_recipe_flags(parser)
    add_dummy_flags(parser)


def _run(args: argparse.Namespace) -> Outcome:
    _check(args)
    given = given_recipe(args)
    for replacement in given.replacements:
        print(replacement)
    if args.processes is not None:
        print(f"-p {args.processes}: one process streams the model layer by layer, on torch's own threads")
    model = _model(args, given.recipe.model)
    if args.smoothquant is None and not args.calibrate_kv_cache:
        return _convert(args, given, model)
    return _convert_calibrated(args, given, model)


def _model(args: argparse.Namespace, folder: str) -> str | DummyModel:
    model = model_or_dummies(args, folder)
    if model is None:
        raise UsageError(
            "no model is named", fix="give --model_dir, 'model:' in the recipe, or --preset for dummy weights"
        )
    if not folder:
        print(described(args))
    return model


def _convert(args: argparse.Namespace, given: GivenRecipe, model: str | DummyModel) -> Outcome:
    """Everything is decided: quantize."""
    from workbench.quantization.convert import convert, plan_conversion, ranges_needed_for

    recipe, out = given.recipe, args.output_dir
    _check_apart(args, model, out)
    plan = plan_conversion(model, recipe)
    _announce(plan, out, force=args.force)
    needed_for = ranges_needed_for(recipe)
    if needed_for is None and args.ranges is not None:
        print("--ranges: nothing in the recipe needs them")
    start = time.perf_counter()
    with _ranges(args, model, needed_for) as ranges, ProgressBars() as report:
        checkpoint = convert(model, recipe, out, ranges=ranges, force=args.force, report=report)
    seconds = time.perf_counter() - start
    weights = f"{recipe.weights.kind} weights, the rest in " if recipe.weights else ""
    cache = f", {recipe.kv_cache.kind} KV cache" if recipe.kv_cache else ""
    print(f"wrote {out}: {weights}{recipe.dtype}{cache}, {seconds:.1f} s")
    return _outcome(given, plan, checkpoint, seconds)


def _convert_calibrated(args: argparse.Namespace, given: GivenRecipe, model: str | DummyModel) -> Outcome:
    """Smoothing is folded in and ranges are kept; how to quantize is decided by 'build'."""
    from workbench.quantization.calibrated import convert_calibrated, plan_calibrated

    out = args.output_dir / ONE_RANK_FOLDER
    options = _calibrated_options(args, given)
    needed_for = "smoothing" if options.smoothing else "an INT8 KV cache"
    _check_apart(args, model, out)
    plan = _plan_before_ranges(model, given)
    _announce(plan, out, force=args.force)
    start = time.perf_counter()
    with _ranges(args, model, needed_for) as ranges, ProgressBars() as report:
        assert ranges is not None
        plan = plan_calibrated(model, ranges, options)
        checkpoint = convert_calibrated(model, out, ranges, options, force=args.force, report=report)
    seconds = time.perf_counter() - start
    smoothed = f"smoothed with alpha {options.smoothing.alpha:g}" if options.smoothing else "not smoothed"
    print(f"wrote {out}: calibrated, {smoothed}, {options.dtype}, {seconds:.1f} s; quantize it with 'workbench build'")
    return _outcome(given, plan, checkpoint, seconds)


def _plan_before_ranges(model: str | DummyModel, given: GivenRecipe) -> ConversionPlan:
    """What the weights alone will need, and the memory that smoothing takes; the ranges are small beside them."""
    from workbench.quantization.convert import plan_conversion

    dense = replace(given.recipe, weights=None, kv_cache=None, keep=("lm_head",))
    smoothed = plan_conversion(model, replace(dense, weights=SmoothQuant()))
    return replace(plan_conversion(model, dense), memory_bytes=smoothed.memory_bytes)


def _calibrated_options(args: argparse.Namespace, given: GivenRecipe) -> CalibratedOptions:
    from workbench.quantization.calibrated import CalibratedOptions

    weights, flag = given.recipe.weights, "-kv" if args.smoothquant is None else "-sq"
    chosen = weights if isinstance(weights, SmoothQuant) and args.smoothquant is not None else None
    if given.recipe.kv_cache is not None or (weights is not None and chosen is None):
        raise UsageError(
            f"{flag} with a quantization (--weights, --kv_cache or the recipe's)",
            allowed=f"{flag} alone writes a calibrated checkpoint, which 'workbench build' quantizes by its flags",
            fix=f"leave {flag} out to quantize now, or leave the quantization to 'build'",
        )
    if args.smoothquant is None:
        return CalibratedOptions(given.recipe.dtype, max_positions=given.recipe.max_positions)
    smoothing = replace(chosen or SmoothQuant(), alpha=args.smoothquant)
    return CalibratedOptions(given.recipe.dtype, smoothing, given.recipe.max_positions)


def _check_apart(args: argparse.Namespace, model: str | DummyModel, out: Path) -> None:
    """Refuse to write over anything that is read."""
    from workbench.checkpoint.output_folder import check_apart

    folder = Path(model) if isinstance(model, str) else None
    for source in (folder, args.ranges, args.recipe, *text_paths(args)):
        check_apart(source, out)


def _announce(plan: ConversionPlan, out: Path, *, force: bool) -> None:
    """Say what it takes, and refuse an output that cannot be written before minutes of calibration."""
    from workbench.checkpoint.output_folder import check_output

    check_output(out, force=force, needed_bytes=plan.disk_bytes)
    print(
        f"plan: {count(plan.parameters)} parameters; needs {size(plan.disk_bytes)} on disk "
        f"and about {size(plan.memory_bytes)} of memory",
        flush=True,
    )
    if plan.ignored:
        print(f"ignored, since the model has no such tensors: {_listed(plan.ignored)}")


def _listed(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more (--json lists all)" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more


@contextmanager
def _ranges(
    args: argparse.Namespace, model: str | DummyModel, needed_for: str | None
) -> Iterator[ActivationRanges | None]:
    """The ranges that are given, those of a calibration now, or dummies; None where none are needed."""
    if needed_for is None:
        yield None
        return
    from workbench.quantization.ranges import ActivationRanges

    if args.ranges is not None:
        yield ActivationRanges.load(args.ranges)
        return
    if not isinstance(model, str):
        from workbench.quantization.dummy_ranges import dummy_ranges

        print(f"{needed_for} needs ranges: dummies too")
        yield dummy_ranges(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _calibrated_now(args, model, needed_for, Path(folder) / "ranges")


def _calibrated_now(args: argparse.Namespace, model: str, needed_for: str, folder: Path) -> ActivationRanges:
    from workbench.quantization.calibration import CalibrationOptions, calibrate
    from workbench.quantization.calibration_data import WindowCounts, calibration_windows
    from workbench.runtime.tokenizer import load_tokenizer

    options = CalibrationOptions(device=args.device, batch=args.batch, chunk=args.chunk)
    counts = WindowCounts(args.samples, args.length, tune=0)
    tokenizer = load_tokenizer(model, trust_remote_code=args.trust_remote_code)
    data = calibration_windows(tokenizer, text_source(args), counts)
    print(
        f"{needed_for} needs ranges: calibrating with {args.samples} x {args.length} tokens of {data.dataset} "
        "('workbench calibrate' and --ranges keep them)",
        flush=True,
    )
    with ProgressBars() as report:
        return calibrate(model, data, folder, options, report=report)


def _outcome(given: GivenRecipe, plan: ConversionPlan, checkpoint: Any, seconds: float) -> Outcome:
    smoothing = checkpoint.smoothing
    return Outcome(
        {
            "checkpoint_dir": checkpoint.folder,
            "state": checkpoint.state,
            "smoothing": None if smoothing is None else {"alpha": smoothing.alpha, "groups": smoothing.groups},
            "recipe": checkpoint.recipe.to_dict(),
            "replaced": list(map(str, given.replacements)),
            "parameters": plan.parameters,
            "ignored_tensors": plan.ignored,
            "disk_bytes": plan.disk_bytes,
            "memory_bytes": plan.memory_bytes,
            "kv_bytes_per_token": _kv_bytes(checkpoint),
            "checksum": checkpoint.checksum,
            "seconds": seconds,
        }
    )


def _kv_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of KV cache for one token, said beside what the dtype alone would take."""
    from workbench.checkpoint.cast import torch_dtype
    from workbench.quantization.kv_scales import kv_bytes_per_token

    config, recipe, dtype = checkpoint.config, checkpoint.recipe, torch_dtype(checkpoint.recipe.dtype)
    stored = kv_bytes_per_token(config, dtype, recipe.kv_cache)
    if recipe.kv_cache is not None:
        dense = kv_bytes_per_token(config, dtype, None)
        saved = f"saves {dense - stored:,}"
        print(f"KV cache: {stored:,} bytes a token in INT8 instead of {dense:,} in {recipe.dtype}: {saved}")
    return stored


def _check(args: argparse.Namespace) -> None:
    check_text_flags(args)
    if args.ranges is not None and (args.dataset is not None or args.text is not None):
        raise UsageError("--ranges and a text to calibrate with are both given", fix="give one of them")
    if args.tensor_parallelism != 1:
        raise UsageError(
            f"-tp {args.tensor_parallelism}",
            allowed="1: conversion for several ranks is not there yet",
            fix="leave -tp out",
        )
    if args.processes is not None and args.processes < 1:
        raise UsageError(f"-p {args.processes}", allowed="whole numbers from 1")


def _alpha(word: str) -> float:
    try:
        alpha = float(word)
    except ValueError:
        alpha = float("nan")
    if not 0.0 <= alpha <= 1.0:
        raise argparse.ArgumentTypeError(f"alpha is {word}; allowed: 0 to 1")
    return alpha


def _storage_type(word: str) -> str:
    if word not in STORAGE_TYPES:
        raise argparse.ArgumentTypeError(f"{word!r}; allowed: {', '.join(STORAGE_TYPES)}")
    return STORAGE_TYPES[word]


COMMAND = Command(
    name="convert",
    summary="Convert a Hugging Face checkpoint to ours, quantized as the recipe says or calibrated for 'build'.",
    example="""
workbench convert --model_dir demo/model --recipe data/recipes/int8_weight_only.yaml -o demo/checkpoint --force
workbench convert --model_dir demo/model --weights smoothquant --kv_cache int8 --ranges demo/ranges -o demo/w8a8
workbench convert -i demo/model -o demo/sq0.5 -sq 0.5 -kv -t fp16
workbench convert --preset internlm2-7b --n_layer 2 --weights int4 -o demo/dummy_int4
""",
    add_flags=_add_flags,
    run=_run,
)
