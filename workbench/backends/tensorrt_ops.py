"""The TensorRT op set: each operation adds layers to an ``INetworkDefinition``; nothing is computed here.

The formulations are those that compile to the precision asked for (a spelling with the same mathematics may not):
heads split on their own axis, norms decomposed in float32, dequantization right before its matrix multiply. The ``trt``
module is passed in, so the full product and TensorRT-RTX share this file. Linear layers are named by their tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.backends.tensorrt_types import trt_dtype
from workbench.model.numerics import INT8_LIMIT
from workbench.model.ops import AttentionSpec, CacheUpdate, LayerCache, NewRows, Step, WholeCache
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, KVScales, LinearWeight, SmoothQuantWeight

INT4_BLOCKS = (128, 64, 32, 16)
FUSED_HEAD_DIMS = frozenset({16, 32, 64, 80, 96, 128, 256})
# Below this a row of activations counts as zero: its integers are zero whatever the scale.
_TINY_ABSMAX = 1e-30


@dataclass
class NetworkRecord:
    """What the network object itself cannot tell afterwards.

    Attributes:
        constants: tensors by the name of their constant layer, INT4 packed two in a byte; TensorRT does not copy them,
            so they must outlive it.
        taps: name of the network tensor that carries each tap.
        linears: the weight type of each linear layer, by its name.
    """

    constants: dict[str, Tensor] = field(default_factory=dict)
    taps: dict[str, str] = field(default_factory=dict)
    linears: dict[str, LinearWeight] = field(default_factory=dict)


class TensorRTOps:
    """Operations on ``ITensor`` s in one ``dtype`` (float32, float16 or bfloat16).

    Args:
        trt: the TensorRT module.
        network: the ``INetworkDefinition`` to add layers to.
        dtype: of activations.
        tp_size: ranks of one stage; an all-reduce is added only when there are several.
        hidden_in: the network input that carries the residual stream into a later pipeline stage.
    """

    def __init__(
        self, trt: Any, network: Any, dtype: torch.dtype, *, tp_size: int = 1, hidden_in: Any | None = None
    ) -> None:
        self.trt = trt
        self.network = network
        self.dtype = dtype
        self.tp_size = tp_size
        self.hidden_in = hidden_in
        self.record = NetworkRecord()
        self._type = trt_dtype(trt, dtype)
        self._float = trt.DataType.FLOAT
        self._collectives = 0
        self._masks: dict[int, Any] = {}
        self._rotary: tuple[Any, Any] | None = None

    # ---- the protocol

    def embedding(self, ids: Any, table: Tensor) -> Any:
        return self.network.add_gather(self._constant("embedding.weight", table.to(self.dtype)), ids, 0).get_output(0)

    def add(self, x: Any, y: Any) -> Any:
        return self._elementwise("SUM", x, y)

    def add_rms_norm(self, x: Any, residual: Any | None, weight: Tensor, eps: float) -> tuple[Any, Any]:
        summed = x if residual is None else self.add(x, residual)
        wide = self._cast(summed, self._float)
        square = self._elementwise("PROD", wide, wide)
        mean = self.network.add_reduce(square, self.trt.ReduceOperation.AVG, self._last_axis(wide), True).get_output(0)
        root = self._unary("SQRT", self._elementwise("SUM", mean, self._scalar(eps, mean)))
        normed = self._elementwise("PROD", wide, self._unary("RECIP", root))
        shape = (1,) * (len(x.shape) - 1) + (-1,)
        scale = self._constant(None, weight.to(self.dtype).reshape(shape))
        return self._elementwise("PROD", self._cast(normed, self._type), scale), summed

    def linear(self, x: Any, weight: LinearWeight, name: str) -> Any:
        self.record.linears[name] = weight
        match weight:
            case DenseWeight():
                y = self._matmul(x, self._constant(f"{name}.weight", weight.weight.to(self.dtype)), name)
            case Int8Weight():
                y = self._matmul(x, self._dequantized(name, weight, self._type), name)
            case Int4GroupWeight():
                y = self._matmul(x, self._dequantized_int4(name, weight), name)
            case SmoothQuantWeight():
                y = self._integer_matmul(x, weight, name)
        if weight.bias is None:
            return y
        return self.add(y, self._constant(f"{name}.bias", weight.bias.to(self.dtype).reshape(1, 1, -1)))

    def attention(
        self, qkv: Any, step: Step[Any], cache: LayerCache[Any], spec: AttentionSpec
    ) -> tuple[Any, CacheUpdate[Any]]:
        query, key, value = self._heads(qkv, spec)
        query = self._cast(self._scaled(self._rotate(query, step, spec), spec.head_dim**-0.5), self._type)
        key = self._cast(self._rotate(key, step, spec), self._type)
        self.tap(f"{spec.name}.key", key)
        self.tap(f"{spec.name}.value", value)
        update: CacheUpdate[Any]
        if spec.kv_scales is None:
            update = WholeCache(self._write(cache.key, key, step), self._write(cache.value, value, step))
            keys, values = update.key, update.value
            mask = self._cache_mask(step, cache)
        else:
            update, keys, values = self._append_int8(cache, (key, value), spec.kv_scales)
            mask = self._append_mask(step, cache)
        return self._attend((query, keys, values), mask, spec), update

    def swiglu(self, gate_up: Any) -> Any:
        # Gate and up are parted on an axis of their own: slicing the features would expand quantized weights.
        features = gate_up.shape[-1] // 2
        gate, up = self._split(self._reshape(gate_up, (0, 0, 2, features)), (1, 1))
        gate, up = (self._cast(self._reshape(part, (0, 0, features)), self._float) for part in (gate, up))
        sigmoid = self.network.add_activation(gate, self.trt.ActivationType.SIGMOID).get_output(0)
        silu = self._elementwise("PROD", gate, sigmoid)
        return self._cast(self._elementwise("PROD", silu, up), self._type)

    def gather_last(self, x: Any, last_token: Any | None) -> Any:
        if last_token is None:
            return x
        layer = self.network.add_gather(x, self._reshape(last_token, (0, 1)), 1)
        layer.num_elementwise_dims = 1
        return layer.get_output(0)

    def to_float32(self, x: Any) -> Any:
        return self._cast(x, self._float)

    def all_reduce(self, x: Any) -> Any:
        if self.tp_size == 1:
            return x
        layer = self.network.add_dist_collective(
            x, self.trt.CollectiveOperation.ALL_REDUCE, self.trt.ReduceOperation.SUM, -1, None
        )
        layer.num_ranks = self.tp_size
        layer.name = f"all_reduce.{self._collectives}"
        self._collectives += 1
        return layer.get_output(0)

    def send(self, x: Any) -> None:
        x.name = "hidden_out"
        self.network.mark_output(x)

    def receive(self, step: Step[Any]) -> Any:
        return self.hidden_in

    def tap(self, name: str, x: Any) -> None:
        self.record.taps[name] = x.name

    # ---- attention

    def _heads(self, qkv: Any, spec: AttentionSpec) -> tuple[Any, Any, Any]:
        """Query, key and value, each ``[batch, heads, seq, head_dim]``, before RoPE."""
        counts = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        parted = self._reshape(qkv, (0, 0, sum(counts), spec.head_dim))
        query, key, value = (self._transpose(part, (0, 2, 1, 3)) for part in self._split(parted, counts))
        return query, key, value

    def _rotate(self, x: Any, step: Step[Any], spec: AttentionSpec) -> Any:
        """RoPE in float32: cosines rounded to a half type would lose long positions."""
        if self._rotary is None:
            self._rotary = (
                self._constant("rotary.cos", spec.rotary.cos),
                self._constant("rotary.sin", spec.rotary.sin),
            )
        layer = self.network.add_rotary_embedding(self._cast(x, self._float), *self._rotary, False, 0)
        layer.set_input(3, step.positions)
        return layer.get_output(0)

    def _write(self, cache: Any, rows: Any, step: Step[Any]) -> Any:
        """The cache with the new rows in it; in place when input and output are bound to one buffer."""
        layer = self.network.add_kv_cache_update(cache, rows, step.start, self.trt.KVCacheMode.LINEAR)
        return layer.get_output(0)

    def _append_int8(
        self, cache: LayerCache[Any], rows: tuple[Any, Any], scales: KVScales
    ) -> tuple[NewRows[Any], Any, Any]:
        """Quantized new rows, and the dequantized concatenation of cache and rows; the INT8 cache stays read-only."""
        whole, fresh = [], []
        for stored, new, scale in zip((cache.key, cache.value), rows, (scales.key, scales.value), strict=True):
            axis = 1 if scale.dim() else None
            constant = self._constant(None, scale.float())
            # Quantize saturates at -128; ours is symmetric.
            scaled = self._clipped(self._cast(new, self._float), scale.float() * INT8_LIMIT)
            quantized = self._quantize(scaled, constant, axis)
            joined = self.network.add_concatenation([stored, quantized])
            joined.axis = 2
            fresh.append(quantized)
            whole.append(self._dequantize(joined.get_output(0), constant, axis, self._type))
        return NewRows(fresh[0], fresh[1]), whole[0], whole[1]

    def _attend(self, operands: tuple[Any, Any, Any], mask: Any, spec: AttentionSpec) -> Any:
        query, key, value = operands
        attention = self.network.add_attention_v2(
            query, key, value, self.trt.AttentionNormalizationOp.SOFTMAX, self.trt.CausalMaskKind.NONE
        )
        attention.mask = mask
        fused = spec.head_dim in FUSED_HEAD_DIMS and self.dtype != torch.float32
        attention.decomposable = not fused
        attention.name = spec.name
        context = self._transpose(attention.get_output(0), (0, 2, 1, 3))
        return self._reshape(context, (0, 0, spec.num_heads * spec.head_dim))

    def _cache_mask(self, step: Step[Any], cache: LayerCache[Any]) -> Any:
        """bool ``[batch, 1, seq, max_len]``: the query at position p sees the cache rows 0 .. p."""
        length = cache.key.shape[2]
        if length not in self._masks:
            rows = self._constant(None, torch.arange(length, dtype=torch.int32).reshape(1, 1, 1, length))
            later = self._elementwise("GREATER", rows, self._query_positions(step))
            self._masks[length] = self._unary("NOT", later)
        return self._masks[length]

    def _append_mask(self, step: Step[Any], cache: LayerCache[Any]) -> Any:
        """bool ``[batch, 1, seq, max_len + seq]``: cache rows before ``start``, then new rows up to the query's own."""
        length = -1 - cache.key.shape[2]
        if length not in self._masks:
            rows = self._constant(None, torch.arange(cache.key.shape[2], dtype=torch.int32).reshape(1, 1, 1, -1))
            positions = self._query_positions(step)
            old = self._elementwise("LESS", rows, self._reshape(step.start, (0, 1, 1, 1)))
            # A cache row is seen by every query of its sequence; spell the queries out for the concatenation.
            anyone = self._unary("NOT", self._elementwise("LESS", positions, self._scalar(0, positions)))
            old = self._elementwise("AND", anyone, old)
            keys = self._transpose(positions, (0, 1, 3, 2))
            new = self._unary("NOT", self._elementwise("GREATER", keys, positions))
            joined = self.network.add_concatenation([old, new])
            joined.axis = 3
            self._masks[length] = joined.get_output(0)
        return self._masks[length]

    def _query_positions(self, step: Step[Any]) -> Any:
        return self._reshape(self._cast(step.positions, self.trt.DataType.INT32), (0, 1, -1, 1))

    # ---- linear layers

    def _matmul(self, x: Any, weight: Any, name: str) -> Any:
        """``x @ weight.T`` for ``[batch, seq, in]`` and ``[out, in]``."""
        operand = self._reshape(weight, (1, *weight.shape))
        none, transpose = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        layer = self.network.add_matrix_multiply(x, none, operand, transpose)
        layer.name = name
        return layer.get_output(0)

    def _dequantized(self, name: str, weight: Int8Weight | SmoothQuantWeight, to: Any) -> Any:
        integers = self._constant(f"{name}.weight", weight.weight)
        scale = self._constant(f"{name}.weight_scale", weight.weight_scale.float())
        return self._dequantize(integers, scale, 0, to)

    def _dequantized_int4(self, name: str, weight: Int4GroupWeight) -> Any:
        """Blocks must divide the input: a short last group becomes several blocks with equal scales, as do all."""
        rows, columns = weight.weight.shape[0], 2 * weight.weight.shape[1]
        block = math.gcd(min(weight.group_size, columns), columns)
        # One scale per row would be expanded in memory at every run; the same scale in blocks stays in the kernel.
        block = next((size for size in INT4_BLOCKS if block % size == 0 and size < columns), block)
        repeats = -(-weight.group_size // block)
        scales = weight.weight_scale.repeat_interleave(repeats, 1)[:, : columns // block]
        packed = weight.weight.contiguous()
        values = self.trt.Weights(self.trt.DataType.INT4, packed.data_ptr(), rows * columns)
        layer = self.network.add_constant((rows, columns), values)
        layer.name = f"{name}.weight"
        self.record.constants[layer.name] = packed
        scale = self._constant(f"{name}.weight_scale", scales.to(self.dtype))
        return self._dequantize(layer.get_output(0), scale, None, self._type)

    def _integer_matmul(self, x: Any, weight: SmoothQuantWeight, name: str) -> Any:
        """Activations are divided by their scale, quantized with the constant 1, and both scales follow in float32.

        The same divisions in the same order as :mod:`workbench.model.numerics`, so the integers are the same.
        """
        wide = self._cast(x, self._float)
        if weight.input_scale is None:
            input_scale = self._token_scale(wide)
        else:
            input_scale = self._constant(f"{name}.input_scale", weight.input_scale.float().reshape(1, 1, 1))
        limit = self._scalar(INT8_LIMIT, wide)
        scaled = self._elementwise("MIN", self._elementwise("DIV", wide, input_scale), limit)
        # Quantize saturates at -128; ours is symmetric.
        scaled = self._elementwise("MAX", scaled, self._scalar(-INT8_LIMIT, wide))
        one = self._constant(None, torch.tensor(1.0))
        operand = self._dequantize(self._quantize(scaled, one, None), one, None, self._float)
        product = self._matmul(operand, self._dequantized(name, weight, self._float), name)
        return self._cast(self._elementwise("PROD", product, input_scale), self._type)

    def _token_scale(self, wide: Any) -> Any:
        """``absmax / 127`` of each token: float32 ``[batch, seq, 1]``."""
        peak = self.network.add_reduce(
            self._unary("ABS", wide), self.trt.ReduceOperation.MAX, self._last_axis(wide), True
        ).get_output(0)
        peak = self._elementwise("MAX", peak, self._scalar(_TINY_ABSMAX, peak))
        return self._elementwise("DIV", peak, self._scalar(INT8_LIMIT, peak))

    # ---- single layers

    def _constant(self, name: str | None, value: Tensor) -> Any:
        value = value.detach().cpu().contiguous()
        weights = self.trt.Weights(trt_dtype(self.trt, value.dtype), value.data_ptr(), value.numel())
        layer = self.network.add_constant(tuple(value.shape), weights)
        if name is not None:
            layer.name = name
        self.record.constants[layer.name] = value
        return layer.get_output(0)

    def _scalar(self, value: float, like: Any) -> Any:
        """A constant of ``like``'s rank and type that broadcasts against it."""
        dtype = torch.int32 if like.dtype == self.trt.DataType.INT32 else torch.float32
        return self._constant(None, torch.full((1,) * len(like.shape), value, dtype=dtype))

    def _scaled(self, x: Any, factor: float) -> Any:
        return self._elementwise("PROD", x, self._scalar(factor, x))

    def _clipped(self, x: Any, limit: Tensor) -> Any:
        """float32 ``x`` ``[batch, heads, seq, head_dim]`` within +-limit, ``[]`` or ``[heads]``."""
        bound = limit.reshape(1, -1, 1, 1)
        low, high = self._constant(None, -bound), self._constant(None, bound)
        return self._elementwise("MAX", self._elementwise("MIN", x, high), low)

    def _quantize(self, x: Any, scale: Any, axis: int | None) -> Any:
        layer = self.network.add_quantize(x, scale, self.trt.DataType.INT8)
        if axis is not None:
            layer.axis = axis
        return layer.get_output(0)

    def _dequantize(self, x: Any, scale: Any, axis: int | None, to: Any) -> Any:
        layer = self.network.add_dequantize(x, scale, to)
        if axis is not None:
            layer.axis = axis
        return layer.get_output(0)

    def _elementwise(self, operation: str, x: Any, y: Any) -> Any:
        layer = self.network.add_elementwise(x, y, getattr(self.trt.ElementWiseOperation, operation))
        return layer.get_output(0)

    def _unary(self, operation: str, x: Any) -> Any:
        return self.network.add_unary(x, getattr(self.trt.UnaryOperation, operation)).get_output(0)

    def _cast(self, x: Any, to: Any) -> Any:
        return x if x.dtype == to else self.network.add_cast(x, to).get_output(0)

    def _reshape(self, x: Any, dims: tuple[int, ...]) -> Any:
        """0 keeps a dimension, -1 takes what is left."""
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = dims
        return layer.get_output(0)

    def _transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        layer = self.network.add_shuffle(x)
        layer.first_transpose = self.trt.Permutation(order)
        return layer.get_output(0)

    def _split(self, x: Any, counts: tuple[int, ...]) -> list[Any]:
        """Parts of ``[batch, seq, n, d]`` along its third axis; batch and seq are dynamic."""
        lead = self.network.add_slice(self.network.add_shape(x).get_output(0), (0,), (2,), (1,)).get_output(0)
        parts, first = [], 0
        for count in counts:
            tail = self._constant(None, torch.tensor([count, x.shape[3]], dtype=torch.int64))
            layer = self.network.add_slice(x, (0, 0, first, 0), (0, 0, 0, 0), (1, 1, 1, 1))
            layer.set_input(2, self.network.add_concatenation([lead, tail]).get_output(0))
            parts.append(layer.get_output(0))
            first += count
        return parts

    def _last_axis(self, x: Any) -> int:
        return 1 << (len(x.shape) - 1)
