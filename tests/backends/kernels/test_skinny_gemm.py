"""Products of few rows against the plain torch op set; compiled without a GPU for every architecture we serve."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.kernels.nvrtc import compile_cubin, find_nvrtc
from workbench.backends.kernels.skinny_gemm import (
    Kind,
    NormInput,
    SkinnyLinear,
    Tiles,
    column_tiles_of,
    source,
    supports,
)
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import (
    pack_int4,
    quantize_int4_groups,
    quantize_int8,
    quantize_per_channel,
    quantize_per_token,
)
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight

HALF = torch.float16
KINDS = ["dense", "int8", "int4_128", "int4_64", "int4_32", "int4_0", "w8a8", "w8a8_static"]
CHOICES = [
    Tiles(1, 1, 8, 2, prefetch=4),
    Tiles(2, 2, 4, 1),
    Tiles(1, 4, 2, 2, 2),
    Tiles(4, 1, 2, 1, 4),
    Tiles(2, 1, 1, 4),
]
needs_nvrtc = pytest.mark.skipif(find_nvrtc() is None, reason="needs NVRTC (pip install nvidia-cuda-nvrtc)")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_weight(kind: str, rows: int, k: int, *, bias: bool = True) -> LinearWeight:
    generator = torch.Generator().manual_seed(rows + k)
    weight = torch.randn(rows, k, generator=generator) / k**0.5
    offset = torch.randn(rows, generator=generator).half() if bias else None
    if kind == "dense":
        return DenseWeight(weight.half(), offset)
    if kind.startswith("int4"):
        group = int(kind.removeprefix("int4_"))
        integers, scale = quantize_int4_groups(weight, group)
        return Int4GroupWeight(pack_int4(integers), scale, group or k, offset)
    integers, scale = quantize_per_channel(weight)
    if kind == "int8":
        return Int8Weight(integers, scale, offset)
    return SmoothQuantWeight(integers, scale, offset, torch.tensor(0.02) if kind == "w8a8_static" else None)


def on_gpu(weight: LinearWeight) -> LinearWeight:
    fields = {f.name: getattr(weight, f.name) for f in dataclasses.fields(weight)}
    return dataclasses.replace(weight, **{k: v.cuda() for k, v in fields.items() if isinstance(v, Tensor)})


def run(weight: LinearWeight, x: Tensor, tiles: Tiles, *, glu: bool = False, overlap: bool = False) -> Tensor:
    linear = SkinnyLinear(weight, torch.device("cuda"))
    if not isinstance(weight, SmoothQuantWeight):
        return linear(x, tiles, glu=glu, overlap=overlap)
    scale = None if weight.input_scale is None else weight.input_scale.cuda()
    q, token_scale = quantize_per_token(x) if scale is None else (quantize_int8(x, scale), scale)
    return linear(q, tiles, column_scale=token_scale, glu=glu, overlap=overlap)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_matches_the_oracle_on_shapes_that_divide_nothing(kind: str, tiles: Tiles) -> None:
    for rows, k, columns in ((48, 64, 1), (200, 352, 3), (264, 1120, 8), (136, 4096, 17), (1000, 608, 64)):
        weight = make_weight(kind, rows, k)
        assert supports(weight)
        x = torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half().cuda()
        expected = TorchOps(HALF).linear(x, on_gpu(weight), "")
        for overlap in (False, True):
            found = run(weight, x, tiles, overlap=overlap)
            if kind.startswith("w8a8"):
                assert torch.equal(found, expected), (rows, k, columns)
            else:
                assert relative_l2(found, expected) < TOLERANCE[HALF]["op"], (rows, k, columns)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
@pytest.mark.parametrize("tiles", [Tiles(2, 1, 8, 1), Tiles(2, 4, 2, 2), Tiles(2, 2, 2, 1, 2)], ids=str)
def test_gate_and_up_go_through_swiglu_in_the_same_kernel(kind: str, tiles: Tiles) -> None:
    ops = TorchOps(HALF)
    for rows, k, columns in ((96, 128, 1), (352, 576, 8), (1056, 256, 40)):
        weight = make_weight(kind, rows, k, bias=kind == "dense")
        x = torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half().cuda()
        expected = ops.swiglu(ops.linear(x, on_gpu(weight), ""))
        assert relative_l2(run(weight, x, tiles, glu=True), expected) < TOLERANCE[HALF]["op"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8", "w8a8_static"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_norm_is_taken_along_in_the_same_kernel(kind: str, with_residual: bool) -> None:
    ops = TorchOps(HALF)
    for rows, k, tiles in (
        (48, 64, Tiles(1, 1, 8, 2)),
        (352, 4096, Tiles(2, 2, 8, 1, 1, 2)),
        (200, 608, Tiles(1, 1, 4, 1, 2)),
    ):
        weight = make_weight(kind, rows, k)
        generator = torch.Generator().manual_seed(k)
        x, residual = (3 * torch.randn(1, k, generator=generator).half().cuda() for _ in range(2))
        x[0, 0] = 21500.0
        scale = (1 + 0.1 * torch.randn(k, generator=generator)).half().cuda()
        normed, expected_sum = ops.add_rms_norm(x, residual if with_residual else None, scale, 1e-6)
        expected = ops.linear(normed, on_gpu(weight), "")
        summed = torch.empty_like(x) if with_residual else x
        norm = NormInput(x, residual if with_residual else None, summed, scale, 1e-6)
        static = weight.input_scale if isinstance(weight, SmoothQuantWeight) else None
        linear = SkinnyLinear(weight, torch.device("cuda"))
        for overlap in (False, True):
            found = linear(norm, tiles, column_scale=None if static is None else static.cuda(), overlap=overlap)
            # The mean of squares is summed in another order: a norm that rounds the other way moves an integer.
            limit = TOLERANCE[HALF]["op"] * (4 if kind.startswith("w8a8") else 1)
            assert relative_l2(found, expected) < limit
            assert torch.equal(summed, expected_sum)


@pytest.mark.gpu
@needs_gpu
def test_large_activations_do_not_overflow() -> None:
    # Inputs of InternLM's down projections reach thousands: 127 times that is infinite in float16.
    for kind in ("int8", "int4_128"):
        weight = make_weight(kind, 64, 256)
        x = torch.full((1, 256), 3000.0, dtype=HALF, device="cuda")
        expected = TorchOps(HALF).linear(x, on_gpu(weight), "")
        assert relative_l2(run(weight, x, CHOICES[0]), expected) < TOLERANCE[HALF]["op"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["int8", "int4_128", "int4_32", "int4_0"])
def test_expanded_weights_are_the_oracles(kind: str) -> None:
    for rows, k in ((48, 64), (200, 352), (136, 4096)):
        weight = make_weight(kind, rows, k, bias=False)
        eye = torch.eye(k, dtype=HALF, device="cuda")
        expected = TorchOps(HALF).linear(eye, on_gpu(weight), "").T
        assert torch.equal(SkinnyLinear(weight, torch.device("cuda")).expanded(), expected)


def test_what_the_kernel_cannot_read_is_said_beforehand() -> None:
    assert not supports(make_weight("dense", 16, 36))
    assert not supports(make_weight("int8", 16, 40))
    assert not supports(make_weight("int4_48", 16, 96))
    assert not supports(DenseWeight(torch.zeros(16, 64)))


@pytest.mark.parametrize(("columns", "expected"), [(1, 1), (8, 1), (9, 2), (17, 4), (32, 4), (33, 8), (64, 8)])
def test_columns_are_rounded_up_to_a_compiled_number_of_tiles(columns: int, expected: int) -> None:
    assert column_tiles_of(columns) == expected


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_the_kernel_compiles_without_a_gpu(kind: Kind, architecture: str) -> None:
    for tiles, glu in ((Tiles(1, 1, 8, 2), False), (Tiles(2, 2, 2, 1, 2), True)):
        groups = 4 if kind is Kind.INT4 else 1
        options = tiles.options(kind, 1, groups=groups, glu=glu, overlap=True)
        code = compile_cubin(source(), [*options, f"-DNORM={int(glu)}"], architecture)
        assert code.startswith(b"\x7fELF")
