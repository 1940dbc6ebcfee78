"""The fast op set for CPUs: the oracle's arithmetic with packed weights, in-place caches and fused attention.

Answers differ from :class:`~workbench.backends.torch_ops.TorchOps` by rounding only. Knows nothing about sessions.

Memory: dense weights are packed when they are first used, one copy in the op set's dtype beside the original (whose
pages the system may drop where they are mapped from a file). INT8 weights are used as they are stored. What was made
from a weight goes when the weight goes, so layers that are read anew for each pass take no more memory with each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.backends.cpu_attention import StepPlan, attend, plan_step, write_in_place
from workbench.backends.packed import PackedDense, PackedInt8
from workbench.backends.torch_ops import TapSink, TorchOps, per_head
from workbench.model.numerics import quantize_int8
from workbench.model.ops import AttentionSpec, CacheUpdate, LayerCache, Step, WholeCache
from workbench.model.weights import DenseWeight, Int8Weight, LinearWeight
from workbench.parallel.communicator import Communicator


@dataclass(frozen=True)
class _Prepared:
    """What runs a weight, and the reference whose end takes it away."""

    run: Callable[[Tensor], Tensor]
    weight: weakref.ref[Any]


class CpuOps(TorchOps):
    """Operations on CPU tensors in float32, float16 or bfloat16; see :class:`TorchOps` for the arguments.

    ``attention`` writes the cache it is given and returns the same storage. The cache may be wider than the dtype
    (float32 is the fastest to read): rows are rounded to the dtype before they are written.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        communicator: Communicator | None = None,
        neighbours: tuple[int, int] = (-1, -1),
        on_tap: TapSink | None = None,
    ) -> None:
        super().__init__(dtype, communicator, neighbours, on_tap)
        self._linears: dict[int, _Prepared] = {}
        self._planned: tuple[Step[Tensor], StepPlan] | None = None

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        summed = x if residual is None else x + residual
        weight = weight if weight.dtype == self.dtype else weight.to(self.dtype)
        return functional.rms_norm(summed, weight.shape, weight, eps), summed

    def linear(self, x: Tensor, weight: LinearWeight, name: str) -> Tensor:
        if not isinstance(weight, (DenseWeight, Int8Weight)):
            return super().linear(x, weight, name)
        # By identity, since tensors do not hash by value.
        held = self._linears.get(id(weight))
        if held is None:
            held = self._linears[id(weight)] = self._prepared(weight)
        return held.run(x)

    def _prepared(self, weight: DenseWeight | Int8Weight) -> _Prepared:
        run = PackedDense(weight, self.dtype) if isinstance(weight, DenseWeight) else PackedInt8(weight, self.dtype)
        key, ops = id(weight), weakref.ref(self)

        def forget(_: object) -> None:
            held = ops()
            if held is not None:
                held._linears.pop(key, None)

        return _Prepared(run, weakref.ref(weight, forget))

    def attention(
        self, qkv: Tensor, step: Step[Tensor], cache: LayerCache[Tensor], spec: AttentionSpec
    ) -> tuple[Tensor, CacheUpdate[Tensor]]:
        plan = self._plan(step, spec)
        query, key, value = self._rotated(qkv, plan, spec)
        if self.on_tap is not None:
            self.tap(f"{spec.name}.key", key)
            self.tap(f"{spec.name}.value", value)
        if spec.kv_scales is not None:
            new_key = quantize_int8(key, per_head(spec.kv_scales.key))
            new_value = quantize_int8(value, per_head(spec.kv_scales.value))
        else:
            new_key, new_value = key, value
        write_in_place(cache.key, new_key, plan)
        write_in_place(cache.value, new_value, plan)
        if spec.kv_scales is not None:
            key = self._dequantized(cache.key[:, :, : plan.length], spec.kv_scales.key)
            value = self._dequantized(cache.value[:, :, : plan.length], spec.kv_scales.value)
        elif plan.length > qkv.shape[1]:
            key, value = cache.key[:, :, : plan.length], cache.value[:, :, : plan.length]
        context = attend(query, key, value, plan)
        return context.transpose(1, 2).flatten(2), WholeCache(cache.key, cache.value)

    def _rotated(self, qkv: Tensor, plan: StepPlan, spec: AttentionSpec) -> tuple[Tensor, Tensor, Tensor]:
        """Query (not scaled), key and value, each ``[batch, heads, seq, head_dim]``, RoPE applied."""
        batch, seq, _ = qkv.shape
        heads = qkv.view(batch, seq, -1, spec.head_dim)
        turned = spec.num_heads + spec.num_kv_heads
        straight = heads[:, :, :turned].float()
        swapped = straight.roll(spec.head_dim // 2, -1)
        rotated = torch.addcmul(straight * plan.cos, swapped, plan.sin).to(self.dtype).transpose(1, 2)
        return rotated[:, : spec.num_heads], rotated[:, spec.num_heads :], heads[:, :, turned:].transpose(1, 2)

    def _dequantized(self, integers: Tensor, scale: Tensor) -> Tensor:
        return (integers * per_head(scale)).to(self.dtype)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return functional.silu(gate).mul_(up).to(self.dtype)

    def _plan(self, step: Step[Tensor], spec: AttentionSpec) -> StepPlan:
        if self._planned is None or self._planned[0] is not step:
            self._planned = step, plan_step(step, spec.rotary)
        return self._planned[1]
