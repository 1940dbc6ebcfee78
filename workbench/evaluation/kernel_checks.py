"""Runs every kernel for NVIDIA GPUs on small shapes that divide nothing, and compares it with the plain op set.

    python -m workbench.evaluation.kernel_checks [--quick]

prints a line for each comparison and ends with 1 if one failed. Outputs are filled with NaN before kernels write them.
Kernels that this GPU does not run are not among them: the one for a whole step and those of ``wide_gemm.cu`` are for
Hopper. It is also what sanitizers watch; see :mod:`workbench.evaluation.gpu_check`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.backends.kernels import decode_step, require_gpu, rowwise, wide_gemm
from workbench.backends.kernels.choice import choose_most_probable
from workbench.backends.kernels.decode_step import MOST_ROWS, can_run_on
from workbench.backends.kernels.int8_gemm import Int8Rows, Int8Tiles, int8_linear
from workbench.backends.kernels.nvrtc import code_digest
from workbench.backends.kernels.skinny_gemm import Kind, SkinnyLinear, Tiles
from workbench.backends.kernels.wide_gemm import possible_wide, wide_linear
from workbench.backends.torch_ops import TorchOps
from workbench.evaluation.gpu_benchmark import dummy_weights
from workbench.evaluation.gpu_options import GPU_MODES
from workbench.model.config import ModelConfig
from workbench.model.numerics import quantize_per_token
from workbench.model.presets import PRESETS
from workbench.model.weights import DenseWeight, LinearWeight, ModelWeights, SmoothQuantWeight, on_device
from workbench.quantization.quantize import quantize_linear
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8WeightOnly, SmoothQuant, WeightQuantization
from workbench.runtime.cuda_session import CudaOptions, CudaSession
from workbench.runtime.device_sampling import DeviceSampler
from workbench.runtime.sampling import Sampler, SamplingOptions
from workbench.runtime.session import SessionOptions, TorchSession

HALF, DEVICE = torch.float16, "cuda"
# Relative L2. A rounding that falls the other way in float16 moves an integer made from it by one step.
OPERATION, MODEL, MODEL_OF_INTEGERS = 1e-3, 4e-3, 3.2e-2
SIZES = replace(
    PRESETS["internlm-7b"],
    hidden_size=256,
    intermediate_size=448,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=336,
    max_position_embeddings=128,
    eos_token_ids=(2,),
)
GROUPED = replace(SIZES, num_heads=8, num_kv_heads=2, head_dim=32, qkv_bias=False, output_bias=False)
# The kernel for a whole step goes round its ring of weights, streams 8 rows of o (INT8) and down (INT8 and INT4), and
# on 132 processors has more of the head for a block than it sums up at once.
WIDE = replace(
    SIZES,
    hidden_size=1152,
    intermediate_size=2112,
    num_layers=1,
    num_heads=18,
    num_kv_heads=18,
    vocab_size=132 * 8 * 16 + 512,
)
LONG, LONG_GROUPED = (replace(sizes, max_position_embeddings=6000) for sizes in (SIZES, GROUPED))
KINDS: dict[str, WeightQuantization | None] = {
    "float16": None,
    "int8": Int8WeightOnly(),
    "int4": Int4WeightOnly(group_size=128),
    "int4 groups of 32": Int4WeightOnly(group_size=32),
    "w8a8": SmoothQuant(),
}
# Rows of x, and k: every number of column tiles, whole and with columns to spare.
COLUMNS = ((1, 352), (3, 1120), (8, 608), (9, 160), (17, 352), (32, 608), (40, 352), (64, 160))
QUICK_COLUMNS = ((1, 352), (9, 160), (40, 352))
# A model's longest prompt, as a part of its positions.
LONGEST = 1 / 3
SANITIZED_TOKENS = 64  # of all prompts together, with ``quick``: racecheck breaks cuBLAS's products of hundreds of rows
# One of each way to divide the work: along k, along rows, over blocks, with prefetching.
TILES = (Tiles(2, 1, 8, 1), Tiles(2, 2, 4, 1, 1, 4), Tiles(2, 2, 2, 1, 2))
SAMPLED = SamplingOptions(1.3, 40, 0.9, 1.2, 0.1, 0.1, random_seed=3, bad_words=((5,), (7, 9)))


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        error: relative L2 distance; infinite where a NaN was left.
        limit: the largest that passes.
    """

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def checks(*, quick: bool = False) -> Iterator[Check]:
    """All comparisons; ``quick`` runs every kernel too, but on few shapes, models of one layer, and no CUDA graphs."""
    for kind, how in KINDS.items():
        for shape in QUICK_COLUMNS if quick else COLUMNS:
            yield from product_checks(kind, how, shape)
    yield from row_checks()
    yield choice_check()
    yield sampling_check()
    for config, mode, batch in quick_models() if quick else models():
        for one_kernel in (True, False) if batch <= one_kernel_rows(mode) else (False,):
            yield session_check(config, mode, batch, graphs=not quick, one_kernel=one_kernel)


def one_kernel_rows(mode: str) -> int:
    """Rows up to which a model of :data:`SIZES` decodes in one kernel on this GPU."""
    if not can_run_on(torch.device(DEVICE)):
        return 0
    return MOST_ROWS[Kind[mode.partition("+")[0].upper()]]


def models() -> Iterator[tuple[ModelConfig, str, int]]:
    """Sizes, modes and batches."""
    yield from itertools.product((SIZES, GROUPED), GPU_MODES, (1, 2, 3, 5, 20, 64))
    yield from itertools.product((WIDE,), GPU_MODES, (1, 2, 8))
    yield from itertools.product((LONG, LONG_GROUPED), ("float16", "int4", "w8a8+kv8"), (1, 2, 8, 20))


def quick_models() -> Iterator[tuple[ModelConfig, str, int]]:
    """Of one layer, and one of two; every kernel of :func:`models`."""
    modes = ("float16", "int8", "int4", "w8a8+kv8")
    yield from itertools.product([replace(SIZES, num_layers=1)], modes, (1, 20))
    yield from itertools.product([replace(GROUPED, num_layers=1)], ("float16", "w8a8+kv8"), (1,))
    # Batches whose step is prepared for more rows than their limits allow.
    yield from ((replace(SIZES, num_layers=1), mode, batch) for mode, batch in (("int8", 3), ("int4", 5)))
    yield SIZES, "int4", 1  # a layer after another
    yield from ((WIDE, mode, batch) for mode, batch in (("int8", 8), ("int4", 8), ("float16", 2), ("w8a8+kv8", 2)))


def product_checks(kind: str, how: WeightQuantization | None, shape: tuple[int, int]) -> Iterator[Check]:
    """One weight type: every way to divide its work, with and without SwiGLU, and what cuBLAS would read of it.

    Args:
        kind: name of the weight type.
        how: it is quantized.
        shape: rows of x, and k.
    """
    columns, k = shape
    generator = torch.Generator().manual_seed(k)
    values, bias = (torch.randn(*size, generator=generator) for size in ((352, k), (352,)))
    dense = DenseWeight((values / k**0.5).half(), bias.half() / 10)
    weight: LinearWeight = on_device(quantize_linear(dense, how, HALF), torch.device(DEVICE))
    x = torch.randn(columns, k, generator=generator).half().to(DEVICE)
    ops = TorchOps(HALF)
    expected = ops.linear(x, weight, "")
    linear = SkinnyLinear(weight, torch.device(DEVICE))
    given = rowwise.quantize_rows(x, None) if isinstance(weight, SmoothQuantWeight) else None
    rows, scale = (given.integers, given.scale) if given else (x, None)
    name = f"{kind}, {columns} rows, k {k}"
    for tiles in TILES:
        yield check(f"{name}, {tiles}", linear(rows, tiles, column_scale=scale), expected, OPERATION)
        paired = linear(rows, tiles, column_scale=scale, glu=True)
        yield check(f"{name}, {tiles}, SwiGLU", paired, ops.swiglu(expected), 2 * OPERATION)
    wide = possible_wide(linear, columns)
    if wide is not None:
        for glu in (False, True):
            found = wide_linear(linear, rows, wide, column_scale=scale, glu=glu)
            wanted = ops.swiglu(expected) if glu else expected
            yield check(f"{name}, {wide}{', SwiGLU' if glu else ''}", found, wanted, (1 + glu) * OPERATION)
    if given is not None and linear.row_scale is not None:
        held = Int8Rows(linear.packed, linear.row_scale, linear.bias)
        found = int8_linear(given, held, Int8Tiles(32, 128, 4, 4), dtype=HALF, glu=False, overlap=False)
        yield check(f"{name}, in Triton", found, expected, OPERATION)
    elif how is not None:
        unbiased = replace(weight, bias=None)
        eye = torch.eye(k, dtype=HALF, device=DEVICE)
        yield check(f"{name}, expanded", linear.expanded(), ops.linear(eye, unbiased, "").T, 0.0)


def row_checks() -> Iterator[Check]:
    """Norm, quantization and SwiGLU, row by row."""
    ops = TorchOps(HALF)
    for rows, width in ((1, 256), (5, 1000)):
        generator = torch.Generator().manual_seed(width)
        x, residual = (torch.randn(rows, width, generator=generator).half().to(DEVICE) for _ in range(2))
        weight = (1 + torch.randn(width, generator=generator) / 10).half().to(DEVICE)
        summed = torch.empty_like(x)
        normed = rowwise.add_rms_norm((x, residual, summed), weight, 1e-6)
        expected, expected_sum = ops.add_rms_norm(x, residual, weight, 1e-6)
        yield check(f"norm of {rows} x {width}", normed, expected, OPERATION)
        yield check(f"sum of {rows} x {width}", summed, expected_sum, 0.0)
        quantized = rowwise.add_rms_norm_quantized((x, residual, summed), weight, 1e-6, None)
        integers, scale = quantize_per_token(normed)
        wrong = (quantized.integers != integers).sum() + (quantized.scale != scale).sum()
        yield Check(f"integers and scales of the norm of {rows} x {width}", float(wrong), 0.0)
        yield check(f"SwiGLU of {rows} x {width}", rowwise.swiglu(x), ops.swiglu(x), OPERATION)


def choice_check() -> Check:
    """The most probable tokens of rows of logits: torch's."""
    logits = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids, start = torch.full((5,), -1, device=DEVICE), torch.zeros(5, dtype=torch.int32, device=DEVICE)
    choose_most_probable(logits, ids, start)
    wrong = int((ids != logits.argmax(-1)).sum()) + int((start != 1).sum())
    return Check("most probable tokens", float(wrong), 0.0)


def sampling_check() -> Check:
    """Tokens that the device chooses: those of the host."""
    prompts = [[1, 2, 3], [7], [1, 2, 3]]
    host = Sampler(SAMPLED, prompts)
    device = DeviceSampler(SAMPLED, prompts, steps=8, vocab=2000, device=DEVICE)
    wrong = 0
    for seed in range(8):
        logits = torch.randn(len(prompts), 2000, generator=torch.Generator().manual_seed(seed)) * 3
        wrong += host.choose(logits) != device.choose(logits.to(DEVICE)).tolist()
    return Check("sampling on the device", float(wrong), 0.0)


def session_check(config: ModelConfig, mode: str, batch: int, *, graphs: bool, one_kernel: bool = False) -> Check:
    """Prefill and three steps of a small model: the largest distance of their logits from the plain op set's.

    Limits are those of the batch. Infinite where a chosen token is not the most probable one, or where the model does
    not decode in one kernel though it should.
    """
    weights = dummy_weights(config, GPU_MODES[mode])
    held = ModelWeights(list(weights.layers), weights.embedding, weights.final_norm, weights.lm_head)
    longest = int(LONGEST * config.max_position_embeddings)
    limits = BuildLimits(max_batch_size=batch, max_input_len=longest, max_output_len=16)
    plain = TorchSession(config, held, SessionOptions(HALF, "torch", limits, DEVICE))
    fast = CudaSession(config, held, CudaOptions(HALF, limits, DEVICE, graphs=graphs, one_kernel=one_kernel))
    generator = torch.Generator().manual_seed(batch)
    if not graphs:
        longest = min(longest, SANITIZED_TOKENS // batch)
    lengths = torch.randint(1, longest + 1, (batch,), generator=generator).tolist()
    prompts = [torch.randint(0, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    errors = [distance(fast.prefill(prompts), plain.prefill(prompts))]
    for _ in range(3):
        ids = torch.randint(0, config.vocab_size, (batch,), generator=generator)
        found = fast.decode(ids)
        errors.append(distance(found, plain.decode(ids)))
    chosen = found.argmax(-1).cpu()
    for _ in range(2):
        expected = plain.decode(chosen)
        chosen = fast.decode_greedy().cpu()
        logits = fast._logits(batch)
        errors += [distance(logits, expected), greedy_error(logits.cpu(), chosen)]
    if fast.decodes_in_one_kernel != one_kernel:
        errors.append(float("inf"))
    plain.close()
    fast.close()
    integers = mode.startswith("w8a8") or mode.endswith("kv8")
    way = ", one kernel" if one_kernel else ""
    sizes = f"{config.num_heads} heads on {config.num_kv_heads}, prompts of up to {longest} tokens"
    name = f"model in {mode}, {batch} rows, {sizes}{way}"
    return Check(name, max(errors), MODEL_OF_INTEGERS if integers else MODEL)


def greedy_error(logits: Tensor, chosen: Tensor) -> float:
    """0 where each of ``chosen``, ``[batch]``, is a most probable token of ``[batch, vocab]``; else infinite."""
    taken = logits.gather(1, chosen[:, None])[:, 0]
    return 0.0 if bool((taken == logits.max(-1).values).all()) else float("inf")


def check(name: str, found: Tensor, expected: Tensor, limit: float) -> Check:
    return Check(name, distance(found, expected), limit)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2; infinite where a number is none."""
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN, or of their largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of operations that know no other algorithm
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def main(words: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m workbench.evaluation.kernel_checks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every kernel that this GPU runs, but few shapes, models of one layer, and no CUDA graphs",
    )
    args = parser.parse_args(words)
    require_gpu("a check of the kernels", otherwise="")
    failed = count = 0
    with poisoned(), torch.inference_mode():
        for result in checks(quick=args.quick):
            count += 1
            failed += not result.passed
            print(f"{'ok    ' if result.passed else 'FAILED'} {result.error:9.2e}  {result.name}", flush=True)
    for module in (decode_step, wide_gemm):
        known = "that was compared before" if module.compared() else "not the COMPARED_CODE that sessions use"
        print(f"{module.__name__.rpartition('.')[2]}: code {code_digest(module.source())}, {known}")
    print(f"{count - failed} of {count} checks passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
