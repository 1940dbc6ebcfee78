"""Every operation x dtype x op set against the plain torch op set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.network_runner import Build, run_in_network
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.cpu_ops import CpuOps
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import pack_int4, quantize_int4_groups, quantize_per_channel
from workbench.model.ops import AttentionSpec, LayerCache, NewRows, Step
from workbench.model.rotary import RotaryTables
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, KVScales, LinearWeight, SmoothQuantWeight

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BATCH, SEQ, WIDTH, HEAD_DIM, ROWS = 3, 5, 48, 16, 12


@dataclass(frozen=True)
class Case:
    """Inputs of one operation, and the operation over any op set."""

    inputs: dict[str, Tensor]
    build: Build


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(kind: str, dtype: torch.dtype) -> LinearWeight:
    weight, bias = _random(64, WIDTH, seed=3) / WIDTH**0.5, _random(64, seed=4).to(dtype)
    if kind.startswith("dense"):
        return DenseWeight(weight.to(dtype), bias if kind == "dense_bias" else None)
    if kind.startswith("int4"):
        group = int(kind.removeprefix("int4_"))
        nibbles, groups = quantize_int4_groups(weight, group)
        return Int4GroupWeight(pack_int4(nibbles), groups, group or WIDTH, bias)
    integers, scale = quantize_per_channel(weight)
    if kind == "int8":
        return Int8Weight(integers, scale, bias)
    # Small enough that some activations lie outside and are clipped.
    return SmoothQuantWeight(integers, scale, bias, torch.tensor(0.015) if kind == "smoothquant_static" else None)


def _norm_case(dtype: torch.dtype, with_residual: bool) -> Case:
    # Residuals of InternLM-like models reach 20,000: float16 squares would overflow.
    x, weight = _random(BATCH, SEQ, WIDTH) * 3, (1 + 0.1 * _random(WIDTH, seed=1)).to(dtype)
    x[0, 0, 0] = 21500.0
    inputs = {"x": x.to(dtype)}
    if with_residual:
        inputs["residual"] = _random(BATCH, SEQ, WIDTH, seed=2).to(dtype)

    def build(ops: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
        normed, summed = ops.add_rms_norm(tensors["x"], tensors.get("residual"), weight, 1e-5)
        # A network's output must not be its input.
        return {"normed": normed, "summed": summed} if with_residual else {"normed": normed}

    return Case(inputs, build)


def _attention_case(dtype: torch.dtype, kv_heads: int, scales: KVScales | None) -> Case:
    heads = 4
    angles = torch.arange(ROWS)[:, None] * 100.0 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    spec = AttentionSpec("attention", heads, kv_heads, HEAD_DIM, RotaryTables(angles.cos(), angles.sin()), scales)
    start = torch.tensor([0, 4, 7], dtype=torch.int32)
    seen = torch.arange(ROWS) < start[:, None]
    held = _random(2, BATCH, kv_heads, ROWS, HEAD_DIM, seed=5) * seen[:, None, :, None]
    stored = (held * 40).round().clamp(-127, 127).to(torch.int8) if scales else held.to(dtype)
    inputs = {
        "qkv": _random(BATCH, SEQ, (heads + 2 * kv_heads) * HEAD_DIM).to(dtype),
        "positions": (start[:, None] + torch.arange(SEQ)).long(),
        "start": start,
        "key": stored[0].contiguous(),
        "value": stored[1].contiguous(),
    }

    def build(ops: Any, t: dict[str, Any]) -> Mapping[str, Any]:
        step = Step(None, t["positions"], t["start"])
        context, update = ops.attention(t["qkv"], step, LayerCache(t["key"], t["value"]), spec)
        form = "new" if isinstance(update, NewRows) else "whole"
        return {"context": context, f"{form}_key": update.key, f"{form}_value": update.value}

    return Case(inputs, build)


def comparable(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs with whole caches cut to their new rows: which of the two an op set returns is its own choice."""
    found = {}
    for name, value in outputs.items():
        if name.startswith("whole_"):
            rows = [held[:, first : first + SEQ] for held, first in zip(value, inputs["start"].tolist(), strict=True)]
            found[name.replace("whole_", "new_")] = torch.stack(rows)
        else:
            found[name] = value
    return found


def make_case(operation: str, dtype: torch.dtype) -> Case:
    x = _random(BATCH, SEQ, WIDTH).to(dtype)
    ids = torch.tensor([[1, 5, 0, 9, 3], [2, 2, 8, 8, 1], [9, 0, 0, 4, 7]])
    last = torch.tensor([4, 0, 2], dtype=torch.int32)
    table = _random(10, WIDTH).to(dtype)
    y = _random(BATCH, SEQ, WIDTH, seed=9).to(dtype)
    simple: dict[str, tuple[dict[str, Tensor], Build]] = {
        "embedding": ({"ids": ids.int()}, lambda ops, t: {"out": ops.embedding(t["ids"], table)}),
        "add": ({"x": x, "y": y}, lambda ops, t: {"out": ops.add(t["x"], t["y"])}),
        "swiglu": ({"x": x}, lambda ops, t: {"out": ops.swiglu(t["x"])}),
        "gather_last": (
            {"x": x, "last": last},
            lambda ops, t: {"out": ops.gather_last(t["x"], t["last"])},
        ),
        "to_float32": ({"x": x, "y": y}, lambda ops, t: {"out": ops.to_float32(ops.add(t["x"], t["y"]))}),
    }
    if operation in simple:
        return Case(*simple[operation])
    family, _, variant = operation.partition(":")
    if family == "linear":
        weight = _linear(variant, dtype)
        return Case({"x": x}, lambda ops, t: {"out": ops.linear(t["x"], weight, "layers.0.mlp.down")})
    if family == "add_rms_norm":
        return _norm_case(dtype, variant == "residual")
    scales = {
        "int8_per_tensor": KVScales(torch.tensor(0.025), torch.tensor(0.03)),
        "int8_per_head": KVScales(torch.tensor([0.025, 0.02]), torch.tensor([0.03, 0.01])),
    }
    return _attention_case(dtype, {"mha": 4, "mqa": 1}.get(variant, 2), scales.get(variant))


def check_outputs(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """The same names, types and shapes, and values within the tolerance of one operation in ``dtype``."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        if value.dtype == torch.int8:
            # x / scale and x * (1 / scale) may fall on either side of a tie; nothing else may differ.
            difference = (found[name].int() - value.int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 2e-3
        else:
            assert relative_l2(found[name], value) < TOLERANCE[dtype]["op"], name


OPERATIONS = [
    "embedding", "add", "swiglu", "gather_last", "to_float32", "add_rms_norm:alone", "add_rms_norm:residual",
    "linear:dense", "linear:dense_bias", "linear:int8", "linear:smoothquant", "linear:smoothquant_static",
    "linear:int4_32", "linear:int4_16", "linear:int4_0",
    "attention:mha", "attention:gqa", "attention:mqa", "attention:int8_per_tensor", "attention:int8_per_head",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op_set", ["cpu", "tensorrt"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_matches_the_oracle(operation: str, op_set: str, dtype: torch.dtype) -> None:
    case = make_case(operation, dtype)
    expected = case.build(TorchOps(dtype), {name: value.clone() for name, value in case.inputs.items()})
    if op_set == "tensorrt":
        found = run_in_network(dtype, case.inputs, case.build)
    else:
        found = dict(case.build(CpuOps(dtype), {name: value.clone() for name, value in case.inputs.items()}))
    check_outputs(comparable(found, case.inputs), comparable(expected, case.inputs), dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_oracle_in_float32_matches_itself_in_float64(operation: str) -> None:
    case = make_case(operation, torch.float32)
    exact = {name: value.double() if value.dtype == torch.float32 else value for name, value in case.inputs.items()}
    expected = case.build(TorchOps(torch.float64), exact)
    found = case.build(TorchOps(torch.float32), dict(case.inputs))
    for name, value in expected.items():
        # Integers move by one at most where float32 and float64 round a tie apart.
        limit = 1.0 if value.dtype == torch.int8 else None
        if limit is None:
            assert relative_l2(found[name], value) < TOLERANCE[torch.float32]["op"]
        else:
            assert (found[name].int() - value.int()).abs().max() <= limit
