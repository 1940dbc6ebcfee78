"""``workbench demo-model``: the embedded model, or a random one, as a checkpoint of any InternLM version."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars

VERSIONS = {"internlm": "InternLM v1", "internlm2": "InternLM2", "internlm3": "InternLM3", "llama": "Llama"}
FORMATS = tuple(VERSIONS)
# Flags of --random, and what each is; the defaults stand in RandomModelSpec.
RANDOM_FLAGS: dict[str, str] = {
    "layers": "decoder layers",
    "hidden": "width of the residual stream",
    "heads": "query heads",
    "kv_heads": "key/value heads, a divisor of heads (default: as many as heads)",
    "intermediate": "width of the MLP",
    "vocab": "vocabulary",
    "seed": "the same seed gives the same bytes",
    "shard_bytes": "largest file in bytes (default: one file)",
    "max_positions": "max_position_embeddings",
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    parser.add_argument(
        "--format",
        default=FORMATS[0],
        metavar="{" + ",".join(FORMATS) + "}",
        help="in whose layout: InternLM v1, InternLM2, InternLM3 or Llama (default: internlm)",
    )
    group = parser.add_argument_group("random models (no tokenizer)")
    group.add_argument("--random", action="store_true", help="random weights instead of the embedded model")
    for name, text in RANDOM_FLAGS.items():
        group.add_argument(f"--{name}", dest=f"random_{name}", type=int, metavar="N", help=text)
    group.add_argument(
        "--dtype", dest="random_dtype", metavar="{float32,float16,bfloat16}", help="element type of the tensors"
    )
    biases = group.add_mutually_exclusive_group()
    biases.add_argument(
        "--bias", dest="random_bias", action="store_const", const=True, help="q, k, v and o carry a bias (as v1's do)"
    )
    biases.add_argument("--no_bias", dest="random_bias", action="store_const", const=False, help="they carry none")
    group.add_argument(
        "--tied", dest="random_tied", action="store_const", const=True, help="the LM head is the embedding table"
    )


def _run(args: argparse.Namespace) -> Outcome:
    chosen = {name.removeprefix("random_"): value for name, value in vars(args).items() if name.startswith("random_")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and not args.random:
        flags = ", ".join(
            "--no_bias" if (name, value) == ("bias", False) else f"--{name}" for name, value in chosen.items()
        )
        raise UsageError(f"{flags} without --random", fix="add --random, or leave it out: the embedded model is fixed")
    start = time.perf_counter()

    from workbench.checkpoint.demo import RandomModelSpec, write_demo_model, write_random_model

    with ProgressBars() as report:
        if args.random:
            spec = RandomModelSpec(**chosen, format=args.format)
            write_random_model(args.out, spec, force=args.force, report=report)
            written = True
        else:
            written = write_demo_model(args.out, format=args.format, force=args.force, report=report)
    seconds = time.perf_counter() - start
    if written:
        kind = "a random model" if args.random else f"the demo model (SmolLM2-135M-Instruct as {VERSIONS[args.format]})"
        print(f"wrote {kind} to {args.out} in {seconds:.1f} s")
    else:
        print(f"{args.out} already holds the demo model")
    result = {"model_dir": args.out, "format": args.format, "random": args.random}
    return Outcome({**result, "written": written, "seconds": seconds})


COMMAND = Command(
    name="demo-model",
    summary="Write the embedded demo model, or a small random one, as a checkpoint of any InternLM version.",
    example="""
workbench demo-model demo/model
workbench demo-model demo/model2 --format internlm2
workbench demo-model demo/tiny --random --layers 2 --hidden 64 --heads 4 --kv_heads 2
""",
    add_flags=_add_flags,
    run=_run,
)
