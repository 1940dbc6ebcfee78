"""Where the kernel for a whole decoding step spends its time: cycles between timestamps of one layer and of the head.

    python -m workbench.evaluation.kernel_trace [--modes int4] [--batches 1 8] [--context 128] [--preset internlm-7b]
                                                [--units 7]

Every block's first thread notes the clock where a part of its work ends; printed are the mean, least and most over the
blocks. A product whose sums do not fit at once goes in rounds: what lies between the first round's x and the last
round's multiplication counts as "products". So does waiting for later parts of an x that is streamed (o and down of 8
rows): "x" is the first part there. Blocks wait for each other in "join", so what one block does longer, the others
spend there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.backends.kernels import require_gpu
from workbench.backends.kernels.decode_shape import MOST_UNITS, StepTuning
from workbench.backends.kernels.decode_step import ROWS
from workbench.errors import WorkbenchError
from workbench.evaluation.gpu_benchmark import ROOM, dummy_weights
from workbench.evaluation.gpu_options import GPU_MODES
from workbench.model.config import ModelConfig
from workbench.model.presets import PRESETS
from workbench.recipe import BuildLimits
from workbench.runtime.cuda_session import CudaOptions, CudaSession

LAYERS = 4  # of the model that is timed; the last is looked at, since the head follows it
WARM_UP = 5
PRODUCTS = ("qkv", "o", "gate_up", "down")
PARTS = ("x", "products", "meeting of warps", "sums and stores", "announce", "join")  # of a product
ATTENTION = ("attention", "attention join")
HEAD = ("head x", "head products", "head meeting of warps", "head sums and stores", "choice")
STAMPS_OF_A_PRODUCT, ATTENTION_STAMPS, HEAD_STAMPS = 8, (32, 33), (39, 40, 41, 42, 43, 44)


@dataclass(frozen=True)
class Span:
    """Clock cycles of one part of a step.

    Attributes:
        name: of the part.
        mean, least, most: over the blocks.
    """

    name: str
    mean: float
    least: int
    most: int


def spans(stamps: Tensor) -> list[Span]:
    """What timestamps, int64 ``[blocks, stamps]``, tell: the parts of a layer in order, then the head's."""
    order: list[tuple[str, int]] = []
    for product, name in enumerate(PRODUCTS):
        first = STAMPS_OF_A_PRODUCT * product
        order += [("", first), *((f"{name} {part}", first + i) for i, part in enumerate(PARTS, start=1))]
        if product == 0:
            order += zip(ATTENTION, ATTENTION_STAMPS, strict=True)
    order += [("", HEAD_STAMPS[0]), *zip(HEAD, HEAD_STAMPS[1:], strict=True)]
    found = []
    for (_, before), (name, after) in itertools.pairwise(order):
        if name:
            taken = stamps[:, after] - stamps[:, before]
            found.append(Span(name, float(taken.double().mean()), int(taken.min()), int(taken.max())))
    return found


def traced(
    config: ModelConfig, mode: str, batch: int, context: int, tuning: StepTuning | None = None
) -> list[Span] | None:
    """Spans of one decoding step with random weights; None where this model and batch do not decode in one kernel.

    Args:
        config: of the model, of which a few layers are taken.
        mode: one of :data:`GPU_MODES`.
        batch: rows.
        context: tokens in the cache.
        tuning: of the kernel; the default where None.

    Raises:
        WorkbenchError: the model has no positions for the context.
    """
    most = config.max_position_embeddings - ROOM
    if not 1 <= context <= most:
        raise WorkbenchError(f"a context of {context} tokens", allowed=f"1 to {most} with this model")
    config = replace(config, num_layers=LAYERS)
    limits = BuildLimits(max_batch_size=batch, max_input_len=context, max_output_len=ROOM)
    session = CudaSession(config, dummy_weights(config, GPU_MODES[mode]), CudaOptions(torch.float16, limits))
    try:
        session.fill_randomly(batch, context)
        kernel = session.one_kernel(replace(tuning or StepTuning(), traced_layer=LAYERS - 1))
        if kernel is None:
            return None
        for _ in range(WARM_UP):
            kernel()
        return spans(kernel.stamps())
    finally:
        session.close()


def main(words: Sequence[str] | None = None) -> int:
    """Print a table for every mode and batch; 2 without a GPU, or for a context that the model has no room for."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.evaluation.kernel_trace",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="internlm-7b", help="sizes of the model")
    parser.add_argument("--modes", nargs="+", choices=GPU_MODES, default=["float16", "int4"], help="weight types")
    parser.add_argument("--batches", nargs="+", type=int, choices=ROWS, default=[1, 8], help="rows")
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--units", type=int, default=StepTuning.units, help="units of rows whose sums are kept at once")
    args = parser.parse_args(words)
    tuning = StepTuning(units=args.units)
    try:
        if not 1 <= args.units <= MOST_UNITS:
            raise WorkbenchError(f"--units {args.units}", allowed=f"1 to {MOST_UNITS}")
        require_gpu("a trace of the decode kernel", otherwise="")
        for mode, batch in itertools.product(args.modes, args.batches):
            found = traced(PRESETS[args.preset], mode, batch, args.context, tuning)
            _print(f"{mode}, batch {batch}", args.context, found)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print(case: str, context: int, found: list[Span] | None) -> None:
    if found is None:
        print(f"{case}: goes operation by operation on this GPU")
        return
    print(f"{case}, context {context}: cycles of one layer, then of the head")
    for span in found:
        print(f"  {span.name:<26} {span.mean:9.0f}  ({span.least} to {span.most})")
    layer = sum(span.mean for span in found if span.name not in HEAD)
    print(f"  {'the layer':<26} {layer:9.0f}")


if __name__ == "__main__":
    sys.exit(main())
