"""The source of products of few rows on a CPU: all kinds and divisions of the work beside the plain torch op set."""

from __future__ import annotations

import ctypes
import functools

import pytest
import torch
from torch import Tensor

from tests.backends.kernels.test_skinny_gemm import KINDS, make_weight
from tests.cuda_on_cpu.cuda_on_cpu import CpuKernel, compile_kernels, needs_compiler
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.kernels import skinny_gemm
from workbench.backends.kernels.nvrtc import Launch
from workbench.backends.kernels.skinny_gemm import NormInput, SkinnyLinear, Tiles
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import quantize_int8, quantize_per_token
from workbench.model.weights import LinearWeight, SmoothQuantWeight

pytestmark = [needs_compiler, pytest.mark.usefixtures("poisoned", "one_thread", "on_cpu")]
HALF = torch.float16
CPU = torch.device("cpu")
OP = TOLERANCE[HALF]["op"]
SEEDS = (1, 2)
SHARED_BYTES = 64 << 10
WORKSPACE_SUMS = 1 << 16


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of this module run here; split sums go to memory that is NaN, beside counters that are zero."""
    arrived = torch.zeros(64, dtype=torch.int32)
    monkeypatch.setattr(skinny_gemm, "_kernel", _kernel)
    monkeypatch.setattr(skinny_gemm, "_workspace", lambda _: (torch.full((WORKSPACE_SUMS,), float("nan")), arrived))


class _Both:
    """Launched twice, in two orders of threads: the second finds counters as the first left them, and is compared."""

    def __init__(self, kernel: CpuKernel) -> None:
        self.kernel = kernel

    def __call__(self, launch: Launch, problem: ctypes.Structure) -> None:
        for self.kernel.seed in SEEDS:
            self.kernel(launch, problem)


@functools.cache
def _kernel(options: tuple[str, ...], name: str, _: int, *, races: bool = False) -> _Both:
    names = ["skinny_gemm", "expand"] if {"-DKIND=1", "-DKIND=2"} & set(options) else ["skinny_gemm"]
    return _Both(_compiled(options, tuple(names), races=races)[name])


@functools.cache
def _compiled(options: tuple[str, ...], names: tuple[str, ...], *, races: bool) -> dict[str, CpuKernel]:
    return compile_kernels(skinny_gemm.source(), options, names, "Problem", SHARED_BYTES, races=races)


def _run(weight: LinearWeight, x: Tensor, tiles: Tiles, *, glu: bool = False) -> Tensor:
    linear = SkinnyLinear(weight, CPU)
    if not isinstance(weight, SmoothQuantWeight):
        return linear(x, tiles, glu=glu, overlap=True)
    scale = weight.input_scale
    q, token_scale = quantize_per_token(x) if scale is None else (quantize_int8(x, scale), scale)
    return linear(q, tiles, column_scale=token_scale, glu=glu, overlap=True)


def _x(columns: int, k: int) -> Tensor:
    return torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half()


CHOICES = {
    "dense": [Tiles(1, 1, 4, 2, prefetch=4), Tiles(1, 2, 2, 2, 2)],
    "int8": [Tiles(2, 2, 2, 1)],
    "int4_128": [Tiles(1, 2, 2, 2, 3)],
    "int4_64": [Tiles(2, 1, 2, 1)],
    "int4_32": [Tiles(2, 1, 1, 2)],
    "int4_0": [Tiles(2, 1, 1, 2)],
    "w8a8": [Tiles(1, 1, 4, 2, 2)],
    "w8a8_static": [Tiles(1, 1, 4, 2, 2)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_matches_the_oracle_on_shapes_that_divide_nothing(kind: str) -> None:
    for tiles in CHOICES[kind]:
        for rows, k, columns in ((48, 64, 1), (104, 352, 3), (72, 608, 8)):
            weight = make_weight(kind, rows, k)
            expected = TorchOps(HALF).linear(_x(columns, k), weight, "")
            found = _run(weight, _x(columns, k), tiles)
            if kind.startswith("w8a8"):
                assert torch.equal(found, expected), (rows, k, columns)
            else:
                assert relative_l2(found, expected) < OP, (rows, k, columns)


def test_many_rows_are_several_tiles_of_columns() -> None:
    weight = make_weight("dense", 72, 96)
    assert relative_l2(_run(weight, _x(17, 96), Tiles(1, 1, 2, 1)), TorchOps(HALF).linear(_x(17, 96), weight, "")) < OP


@pytest.mark.parametrize(("kind", "tiles"), [("dense", Tiles(2, 2, 2, 1, 2)), ("int4_128", Tiles(2, 1, 4, 1))])
def test_gate_and_up_go_through_swiglu_in_the_same_kernel(kind: str, tiles: Tiles) -> None:
    ops = TorchOps(HALF)
    for rows, k, columns in ((96, 128, 1), (224, 576, 5)):
        weight = make_weight(kind, rows, k)
        expected = ops.swiglu(ops.linear(_x(columns, k), weight, ""))
        assert relative_l2(_run(weight, _x(columns, k), tiles, glu=True), expected) < OP


@pytest.mark.parametrize(("kind", "with_residual"), [("dense", True), ("w8a8", False), ("w8a8_static", True)])
def test_a_norm_is_taken_along_in_the_same_kernel(kind: str, with_residual: bool) -> None:
    ops, tiles = TorchOps(HALF), Tiles(1, 2, 2, 1, 2)
    for rows, k in ((48, 64), (104, 608)):
        weight = make_weight(kind, rows, k)
        x, residual = 3 * _x(1, k), _x(1, k) + 0.5
        scale = (1 + 0.1 * _x(1, k)[0]).half()
        normed, expected_sum = ops.add_rms_norm(x, residual if with_residual else None, scale, 1e-6)
        summed = torch.empty_like(x) if with_residual else x
        norm = NormInput(x, residual if with_residual else None, summed, scale, 1e-6)
        static = weight.input_scale if isinstance(weight, SmoothQuantWeight) else None
        found = SkinnyLinear(weight, CPU)(norm, tiles, column_scale=static)
        # The mean of squares is summed in another order: a norm that rounds the other way moves an integer.
        limit = OP * (4 if kind.startswith("w8a8") else 1)
        assert relative_l2(found, ops.linear(normed, weight, "")) < limit
        assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize("kind", ["int8", "int4_128", "int4_32", "int4_0"])
def test_expanded_weights_are_the_oracles(kind: str) -> None:
    for rows, k in ((48, 64), (72, 352)):
        weight = make_weight(kind, rows, k, bias=False)
        expected = TorchOps(HALF).linear(torch.eye(k, dtype=HALF), weight, "").T
        assert torch.equal(SkinnyLinear(weight, CPU).expanded(), expected)


@pytest.fixture
def told_of_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skinny_gemm, "_kernel", functools.partial(_kernel, races=True))


RACED = [(kind, tiles) for kind in KINDS for tiles in CHOICES[kind]]
QUICK = [("dense", CHOICES["dense"][0])]


@pytest.mark.usefixtures("on_cpu", "told_of_races")
@pytest.mark.parametrize(
    ("kind", "tiles"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in RACED]
)
def test_no_two_threads_race(kind: str, tiles: Tiles) -> None:
    for columns in (1, 3, 17):
        assert not _run(make_weight(kind, 104, 352), _x(columns, 352), tiles).isnan().any()
    if kind in ("int8", "int4_128"):
        SkinnyLinear(make_weight(kind, 72, 352, bias=False), CPU).expanded()


@pytest.mark.usefixtures("on_cpu", "told_of_races")
@pytest.mark.parametrize("kind", ["w8a8", pytest.param("dense", marks=pytest.mark.slow)])
def test_no_two_threads_race_where_a_norm_is_taken_along(kind: str) -> None:
    x = _x(1, 608)
    norm = NormInput(x, x + 1, torch.empty_like(x), x[0], 1e-6)
    SkinnyLinear(make_weight(kind, 104, 608), CPU)(norm, Tiles(1, 2, 2, 1, 2))
    assert torch.equal(norm.summed, x + (x + 1))


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu", "told_of_races")
@pytest.mark.parametrize(("kind", "tiles"), [("dense", Tiles(2, 2, 2, 1, 2)), ("int4_128", Tiles(2, 1, 4, 1))])
def test_no_two_threads_race_where_gate_and_up_go_through_swiglu(kind: str, tiles: Tiles) -> None:
    assert not _run(make_weight(kind, 224, 576), _x(5, 576), tiles, glu=True).isnan().any()
