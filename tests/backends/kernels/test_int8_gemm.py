"""Integer products of a batch against the plain torch op set: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import TOLERANCE, relative_l2

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels.int8_gemm import Int8Rows, Int8Tiles, int8_linear
from workbench.backends.kernels.rowwise import Quantized
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import quantize_per_channel, quantize_per_token
from workbench.model.weights import SmoothQuantWeight

pytestmark = pytest.mark.usefixtures("poisoned")
HALF = torch.float16
TILES = Int8Tiles(32, 64, 2, 4)


def _case(device: str, rows: int, k: int, tokens: int, *, bias: bool) -> tuple[SmoothQuantWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + k)
    integers, scale = quantize_per_channel(torch.randn(rows, k, generator=generator) / k**0.5)
    offset = torch.randn(rows, generator=generator).half().to(device) if bias else None
    x = torch.randn(tokens, k, generator=generator).half().to(device)
    return SmoothQuantWeight(integers.to(device), scale.to(device), offset), x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "k", "tokens"), [(40, 80, 9), (100, 208, 33), (64, 128, 64)])
def test_a_product_is_the_oracles_exactly(triton_device: str, rows: int, k: int, tokens: int, bias: bool) -> None:
    weight, x = _case(triton_device, rows, k, tokens, bias=bias)
    quantized = Quantized(*quantize_per_token(x))
    found = int8_linear(quantized, Int8Rows(weight.weight, weight.weight_scale, weight.bias), TILES, dtype=HALF)
    assert torch.equal(found, TorchOps(HALF).linear(x, weight, ""))


@pytest.mark.parametrize(("rows", "k", "tokens"), [(96, 80, 17), (64, 144, 40)])
def test_gate_and_up_go_through_swiglu(triton_device: str, rows: int, k: int, tokens: int) -> None:
    weight, x = _case(triton_device, rows, k, tokens, bias=False)
    quantized = Quantized(*quantize_per_token(x))
    held = Int8Rows(weight.weight, weight.weight_scale, weight.bias)
    found = int8_linear(quantized, held, TILES, dtype=HALF, glu=True)
    ops = TorchOps(HALF)
    assert relative_l2(found, ops.swiglu(ops.linear(x, weight, ""))) < TOLERANCE[HALF]["op"]
