"""``workbench demo-model``: the embedded model, or a random one, as an InternLM v1 checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars

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
    group = parser.add_argument_group("random models (no tokenizer)")
    group.add_argument("--random", action="store_true", help="random weights instead of the embedded model")
    for name, text in RANDOM_FLAGS.items():
        group.add_argument(f"--{name}", dest=f"random_{name}", type=int, metavar="N", help=text)
    group.add_argument(
        "--dtype", dest="random_dtype", metavar="{float32,float16,bfloat16}", help="element type of the tensors"
    )
    group.add_argument(
        "--no_bias", dest="random_bias", action="store_const", const=False, help="q, k, v and o carry no bias"
    )


def _run(args: argparse.Namespace) -> Outcome:
    chosen = {name.removeprefix("random_"): value for name, value in vars(args).items() if name.startswith("random_")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and not args.random:
        flags = ", ".join(f"--{name}" if name != "bias" else "--no_bias" for name in chosen)
        raise UsageError(f"{flags} without --random", fix="add --random, or leave it out: the embedded model is fixed")
    start = time.perf_counter()

    from workbench.checkpoint.demo import RandomModelSpec, write_demo_model, write_random_model

    with ProgressBars() as report:
        if args.random:
            write_random_model(args.out, RandomModelSpec(**chosen), force=args.force, report=report)
            written = True
        else:
            written = write_demo_model(args.out, force=args.force, report=report)
    seconds = time.perf_counter() - start
    if written:
        kind = "a random model" if args.random else "the demo model (SmolLM2-135M-Instruct as InternLM v1)"
        print(f"wrote {kind} to {args.out} in {seconds:.1f} s")
    else:
        print(f"{args.out} already holds the demo model")
    return Outcome({"model_dir": args.out, "random": args.random, "written": written, "seconds": seconds})


COMMAND = Command(
    name="demo-model",
    summary="Write the embedded demo model, or a small random one, as an InternLM v1 checkpoint.",
    example="""
workbench demo-model demo/model
workbench demo-model /tmp/tiny --random --layers 2 --hidden 64 --heads 4 --kv_heads 2
""",
    add_flags=_add_flags,
    run=_run,
)
