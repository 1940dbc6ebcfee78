"""The Triton op set against the plain one, operation by operation: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.test_conformance import DTYPES, OPERATIONS, check_outputs, comparable, make_case
from tests.tolerances import TOLERANCE, relative_l2

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.torch_ops import TorchOps
from workbench.backends.triton_ops import DeferredLinear, DeferredNorm, TritonOps
from workbench.model.weights import DenseWeight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a CUDA device, or TRITON_INTERPRET=1 for Triton's interpreter",
)


class _Settling(TritonOps):
    """The op set as a test wants it: tensors from any device in, tensors on the CPU out."""

    def linear(self, x: Any, weight: Any, name: str) -> Any:
        return self.settle(super().linear(x, weight, name))

    def add_rms_norm(self, x: Any, residual: Any, weight: Tensor, eps: float) -> tuple[Any, Tensor]:
        normed, summed = super().add_rms_norm(x, residual, weight.to(DEVICE), eps)
        return self.settle(normed), summed

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        return super().embedding(ids, table.to(DEVICE))

    def attention(self, qkv: Any, step: Any, cache: Any, spec: Any) -> Any:
        from dataclasses import replace

        from workbench.model.rotary import RotaryTables
        from workbench.model.weights import KVScales

        tables = RotaryTables(spec.rotary.cos.to(DEVICE), spec.rotary.sin.to(DEVICE))
        scales = spec.kv_scales and KVScales(spec.kv_scales.key.to(DEVICE), spec.kv_scales.value.to(DEVICE))
        return super().attention(qkv, step, cache, replace(spec, rotary=tables, kv_scales=scales))


def _run(operation: str, dtype: torch.dtype) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    case = make_case(operation, dtype)
    expected = case.build(TorchOps(dtype), {name: value.clone() for name, value in case.inputs.items()})
    inputs = {name: value.clone().to(DEVICE) for name, value in case.inputs.items()}
    found = {name: value.cpu() for name, value in case.build(_Settling(dtype, device=DEVICE), inputs).items()}
    return comparable(expected, case.inputs), comparable(found, case.inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_matches_the_oracle(operation: str, dtype: torch.dtype) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16 and operation.startswith("attention:int8"):
        pytest.skip("the interpreter cuts float32 to bfloat16 where a GPU rounds: other integers")
    expected, found = _run(operation, dtype)
    check_outputs(found, expected, dtype)


def test_what_feeds_a_linear_layer_waits_for_it_and_runs_once() -> None:
    ops = TritonOps(torch.float16, device=DEVICE)
    x = torch.randn(2, 1, 64, device=DEVICE).half()
    normed, summed = ops.add_rms_norm(x, None, torch.ones(64, device=DEVICE).half(), 1e-6)
    product = ops.linear(normed, DenseWeight(torch.randn(32, 64, device=DEVICE).half()), "")
    assert isinstance(normed, DeferredNorm)
    assert isinstance(product, DeferredLinear)
    assert summed is x
    assert normed.value is None
    settled = ops.all_reduce(product)
    assert ops.settle(product) is settled
    assert settled.shape == (2, 1, 32)


def test_with_a_listener_for_taps_nothing_waits() -> None:
    ops = TritonOps(torch.float16, device=DEVICE, on_tap=lambda *_: None)
    x = torch.randn(2, 1, 64, device=DEVICE).half()
    normed, _ = ops.add_rms_norm(x, None, torch.ones(64, device=DEVICE).half(), 1e-6)
    assert isinstance(normed, Tensor)


def test_an_adopted_weight_leaves_no_second_copy() -> None:
    ops = TritonOps(torch.float16, device=DEVICE)
    weight = DenseWeight(torch.randn(32, 64).half())
    stand_in = ops.adopt(weight)
    x = torch.randn(2, 3, 64, device=DEVICE).half()
    assert stand_in.weight.device.type == "meta"
    expected = TorchOps(torch.float16).linear(x.cpu(), weight, "")
    found = ops.settle(ops.linear(x, stand_in, "")).cpu()
    assert relative_l2(found, expected) < TOLERANCE[torch.float16]["op"]
