"""The fast op set for NVIDIA GPUs: Triton and CUDA kernels over the plain op set. Knows nothing about sessions.

Neighbouring operations share kernels: a norm that feeds W8A8 writes integers, and gate and up go through SwiGLU in the
kernel that multiplies them. So that the model need not know, a norm and a linear layer are *deferred*: their value is
computed by whoever takes it, who knows how it is wanted. With a listener for taps nothing is deferred.

Weights are packed when they are first used, or before by :meth:`TritonOps.adopt`, which leaves no second copy. Float16
has kernels for every weight type; in float32 and bfloat16 linear layers are the plain op set's, on the GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.backends.kernels import attention as attention_kernels
from workbench.backends.kernels import rowwise
from workbench.backends.kernels.attention import NewTokens
from workbench.backends.kernels.int8_gemm import Int8Rows, int8_linear
from workbench.backends.kernels.rope import rotate_and_write
from workbench.backends.kernels.rowwise import Quantized
from workbench.backends.kernels.skinny_gemm import MAX_COLUMNS, Kind, NormInput, SkinnyLinear, supports
from workbench.backends.kernels.tuning import choose, choose_int8, choose_with_norm
from workbench.backends.kernels.wide_gemm import choose_wide, wide_linear
from workbench.backends.torch_ops import TapSink, TorchOps, integer_matmul
from workbench.model.ops import AttentionSpec, CacheUpdate, LayerCache, Step, WholeCache
from workbench.model.weights import LinearWeight, SmoothQuantWeight
from workbench.parallel.communicator import Communicator

PROGRAMMATIC_LAUNCH = (9, 0)  # first compute capability whose kernels may start before the previous one has ended


@dataclass
class DeferredNorm:
    """``RMSNorm(x + residual) * weight`` that was not computed yet; ``summed`` is written along with it."""

    x: Tensor
    residual: Tensor | None
    summed: Tensor
    weight: Tensor
    eps: float
    value: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, residual and their sum as rows."""
        return _rows(self.x), None if self.residual is None else _rows(self.residual), _rows(self.summed)


@dataclass
class DeferredLinear:
    """A product that was not computed yet."""

    x: Tensor | DeferredNorm
    linear: PreparedLinear
    value: Tensor | None = None


@dataclass(frozen=True)
class PreparedLinear:
    """A weight on the device: packed for its kernel, or as it is for the plain op set.

    Attributes:
        packed: the kernel's form of it; None where there is no kernel.
        plain: the weight itself, where there is none.
        input_scale: of W8A8 with calibrated activations.
    """

    packed: SkinnyLinear | None
    plain: LinearWeight | None = None
    input_scale: Tensor | None = None


@dataclass
class _Held:
    """A weight by whose identity its prepared form is found; held, so that no other object takes its place."""

    weight: LinearWeight
    prepared: PreparedLinear


class TritonOps(TorchOps):
    """Operations on CUDA tensors in float16, bfloat16 or float32; see :class:`TorchOps` for the arguments.

    ``attention`` writes the cache it is given and returns the same storage. What ``add_rms_norm`` and ``linear`` return
    may be deferred: :meth:`settle` gives the tensor, and every operation here settles what it takes. Decode in one
    stream at a time.

    Attributes:
        from_scratch: whoever runs a prefill sets this where all rows start at position 0; attention then reads the new
            rows only, without asking the device where they start.
        overlap: kernels start while their predecessors end (sm_90 on).
    """

    def __init__(
        self,
        dtype: torch.dtype,
        communicator: Communicator | None = None,
        neighbours: tuple[int, int] = (-1, -1),
        on_tap: TapSink | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__(dtype, communicator, neighbours, on_tap)
        self.device = torch.device(device)
        self.from_scratch = False
        on_gpu = self.device.type == "cuda"
        self.overlap = on_gpu and torch.cuda.get_device_capability(self.device) >= PROGRAMMATIC_LAUNCH
        self._linears: dict[int, _Held] = {}
        self._arrived = attention_kernels.split_counters(self.device)

    def adopt(self, weight: LinearWeight) -> LinearWeight:
        """Pack a weight for this device; returns a stand-in without storage that means it in :meth:`linear`."""
        prepared = self._prepare(weight)
        stand_in = replace(weight, weight=weight.weight.to("meta"))
        self._linears[id(stand_in)] = _Held(stand_in, prepared)
        return stand_in

    @property
    def weight_bytes(self) -> int:
        """Bytes that one step of few rows reads of all the weights packed so far."""
        held = (item.prepared for item in self._linears.values())
        return sum(item.packed.nbytes for item in held if item.packed is not None)

    def _prepare(self, weight: LinearWeight) -> PreparedLinear:
        scale = weight.input_scale if isinstance(weight, SmoothQuantWeight) else None
        scale = None if scale is None else scale.to(self.device)
        if self.dtype == torch.float16 and self.device.type == "cuda" and supports(weight):
            return PreparedLinear(SkinnyLinear(weight, self.device), input_scale=scale)
        moved: dict[str, Any] = {
            name: value.to(self.device) for name, value in vars(weight).items() if isinstance(value, Tensor)
        }
        return PreparedLinear(None, replace(weight, **moved))

    def prepared(self, weight: LinearWeight) -> PreparedLinear:
        """The form in which a weight runs here, made when it is first asked for."""
        held = self._linears.get(id(weight))
        if held is None:
            held = self._linears[id(weight)] = _Held(weight, self._prepare(weight))
        return held.prepared

    def settle(self, value: Any) -> Tensor:
        """The tensor that a deferred operation stands for, computed at most once."""
        if isinstance(value, Tensor):
            return value
        if value.value is None:
            value.value = self._norm(value) if isinstance(value, DeferredNorm) else self._product(value)
        settled: Tensor = value.value
        return settled

    # What an operation returns is a tensor or deferred; for the type checker either is Any.
    def _later(self, value: Any) -> Any:
        return value if self.on_tap is None else self.settle(value)

    def add(self, x: Any, y: Any) -> Tensor:
        return super().add(self.settle(x), self.settle(y))

    def add_rms_norm(self, x: Any, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Any, Tensor]:
        x = self.settle(x).contiguous()
        summed = x if residual is None else torch.empty_like(x)
        weight = weight if weight.dtype == self.dtype else weight.to(self.dtype)
        return self._later(DeferredNorm(x, residual, summed, weight, eps)), summed

    def _norm(self, norm: DeferredNorm) -> Tensor:
        return rowwise.add_rms_norm(norm.tensors, norm.weight, norm.eps, overlap=self.overlap).view(norm.shape)

    def linear(self, x: Any, weight: LinearWeight, name: str) -> Any:
        return self._later(DeferredLinear(x, self.prepared(weight)))

    def swiglu(self, gate_up: Any) -> Tensor:
        if isinstance(gate_up, DeferredLinear) and gate_up.value is None and self._pairs(gate_up):
            return self._product(gate_up, glu=True)
        settled = self.settle(gate_up)
        y = rowwise.swiglu(_rows(settled), overlap=self.overlap)
        return y.view(*settled.shape[:-1], -1)

    def _pairs(self, product: DeferredLinear) -> bool:
        packed, rows = product.linear.packed, _row_count(product.x)
        if packed is None or not packed.can_pair() or rows > MAX_COLUMNS:
            return False
        if packed.kind is Kind.W8A8 or choose_wide(packed, rows) is not None:
            return True
        return choose(packed, rows, glu=True) is not None

    def _product(self, product: DeferredLinear, *, glu: bool = False) -> Tensor:
        prepared, shape = product.linear, product.x.shape
        if prepared.packed is None:
            assert prepared.plain is not None
            return super().linear(self.settle(product.x), prepared.plain, "")
        fused = self._with_norm(product, glu=glu)
        if fused is not None:
            return fused.view(*shape[:-1], -1)
        if prepared.packed.kind is Kind.W8A8:
            quantized = self._quantized(product.x, prepared.input_scale)
            y = self._multiply(prepared.packed, quantized.integers, quantized.scale, glu=glu)
        else:
            y = self._multiply(prepared.packed, _rows(self.settle(product.x)), None, glu=glu)
        return y.view(*shape[:-1], -1)

    def _with_norm(self, product: DeferredLinear, *, glu: bool) -> Tensor | None:
        """The product of one row that comes from a norm nobody else wants: the kernel takes the norm along."""
        x, packed = product.x, product.linear.packed
        if packed is None or isinstance(x, Tensor) or x.value is not None or _row_count(x) != 1:
            return None
        tiles = choose_with_norm(packed, glu=glu)
        if tiles is None:
            return None
        norm = NormInput(*x.tensors, x.weight, x.eps)
        return packed(norm, tiles, column_scale=product.linear.input_scale, glu=glu, overlap=self.overlap)

    def _quantized(self, x: Tensor | DeferredNorm, static_scale: Tensor | None) -> Quantized:
        if isinstance(x, Tensor) or x.value is not None:
            return rowwise.quantize_rows(_rows(self.settle(x)), static_scale, overlap=self.overlap)
        return rowwise.add_rms_norm_quantized(x.tensors, x.weight, x.eps, static_scale, overlap=self.overlap)

    def _multiply(self, packed: SkinnyLinear, x: Tensor, scale: Tensor | None, *, glu: bool) -> Tensor:
        """``[rows, in] -> [rows, out]``: the kernels where rows are few, cuBLAS elsewhere."""
        wide = choose_wide(packed, len(x))
        if wide is not None:
            return wide_linear(packed, x, wide, column_scale=scale, glu=glu, overlap=self.overlap)
        tiles = choose(packed, len(x), glu=glu) if len(x) <= MAX_COLUMNS else None
        if tiles is not None:
            return packed(x, tiles, column_scale=scale, glu=glu, overlap=self.overlap)
        if packed.kind is Kind.W8A8:
            assert scale is not None
            assert packed.row_scale is not None
            if len(x) <= MAX_COLUMNS:
                held = Int8Rows(packed.packed, packed.row_scale, packed.bias)
                shape = choose_int8(packed, len(x), glu=glu)
                return int8_linear(Quantized(x, scale), held, shape, dtype=self.dtype, glu=glu, overlap=self.overlap)
            return rowwise.rescale(_integers(x, packed.packed), scale, packed.row_scale, packed.bias, self.dtype)
        weight = packed.packed if packed.kind is Kind.FLOAT16 else packed.expanded()
        return functional.linear(x, weight, packed.bias)

    def attention(
        self, qkv: Any, step: Step[Tensor], cache: LayerCache[Tensor], spec: AttentionSpec
    ) -> tuple[Tensor, CacheUpdate[Tensor]]:
        qkv = self.settle(qkv).contiguous()
        if self.on_tap is not None:
            _, *new_rows = self._heads(qkv, step.positions, spec)
            for name, rows in zip(("key", "value"), new_rows, strict=True):
                self.tap(f"{spec.name}.{name}", rows)
        update = WholeCache(cache.key, cache.value)
        if qkv.shape[1] == 1:
            tokens = NewTokens(qkv[:, 0], step.start, cache, spec)
            decoded = attention_kernels.decode(tokens, self._arrived, overlap=self.overlap)
            return decoded[:, None], update
        query, key, value = rotate_and_write(qkv, step.positions, cache, spec)
        query = query.transpose(1, 2)
        if not self.from_scratch:
            return self._attend_cache(query, step, cache, spec).transpose(1, 2).flatten(2), update
        seq = qkv.shape[1]
        key = cache.key[:, :, :seq] if key is None else key
        value = cache.value[:, :, :seq] if value is None else value
        context: Tensor = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=1.0, enable_gqa=spec.num_heads != spec.num_kv_heads
        )
        return context.transpose(1, 2).flatten(2), update

    def _attend_cache(
        self, query: Tensor, step: Step[Tensor], cache: LayerCache[Tensor], spec: AttentionSpec
    ) -> Tensor:
        """Several new rows over a cache that holds older ones."""
        groups = spec.num_heads // spec.num_kv_heads
        held = [cache.key, cache.value]
        if spec.kv_scales is not None:
            scales = spec.kv_scales.key, spec.kv_scales.value
            held = [(x * s.reshape(-1, 1, 1)).to(self.dtype) for x, s in zip(held, scales, strict=True)]
        key, value = (x.repeat_interleave(groups, dim=1) for x in held)
        seen = torch.arange(key.shape[2], device=key.device) <= step.positions[:, None, :, None]
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=1.0)

    def gather_last(self, x: Any, last_token: Tensor | None) -> Any:
        return x if last_token is None else super().gather_last(self.settle(x), last_token)

    def to_float32(self, x: Any) -> Tensor:
        return super().to_float32(self.settle(x))

    def all_reduce(self, x: Any) -> Tensor:
        return super().all_reduce(self.settle(x))

    def send(self, x: Any) -> None:
        super().send(self.settle(x))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _row_count(x: Tensor | DeferredNorm) -> int:
    return math.prod(x.shape[:-1])


def _integers(x: Tensor, weight: Tensor) -> Tensor:
    """``[rows, in] int8 @ [out, in].T int8 -> [rows, out] int32``, without copying weights of the usual shapes."""
    if x.shape[1] % 8 or len(weight) % 8:
        return integer_matmul(x, weight)
    padded = functional.pad(x, (0, 0, 0, 32 - len(x))) if len(x) <= 16 else x
    return torch._int_mm(padded, weight.t())[: len(x)]
