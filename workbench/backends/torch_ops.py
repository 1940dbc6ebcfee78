"""The plain torch op set: the oracle that every other op set is judged by. Runs on CPU or GPU, in any float dtype.

It stays plain: no packing, no in-place writes, one statement per formula. Half precision is computed in float32 and
rounded where the decoder's dtype says so; in float64 everything is float64. Integer products are exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from workbench.model.numerics import quantize_int8, quantize_per_token, unpack_int4
from workbench.model.ops import AttentionSpec, CacheUpdate, LayerCache, NewRows, Step, WholeCache
from workbench.model.rotary import RotaryTables
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight
from workbench.parallel.communicator import Communicator, SingleCommunicator

TapSink = Callable[[str, Tensor], None]


class TorchOps:
    """Operations on torch tensors in one ``dtype``.

    Args:
        dtype: of activations: float64, float32, float16 or bfloat16.
        communicator: the other ranks; alone by default.
        neighbours: ranks to receive from and to send to, for pipeline stages.
        on_tap: called with every tap's name and tensor.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        communicator: Communicator | None = None,
        neighbours: tuple[int, int] = (-1, -1),
        on_tap: TapSink | None = None,
    ) -> None:
        self.dtype = dtype
        self.accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        self.communicator = communicator or SingleCommunicator()
        self.neighbours = neighbours
        self.on_tap = on_tap

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        return functional.embedding(ids, table).to(self.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        summed = x if residual is None else self.add(x, residual)
        wide = summed.to(self.accumulate)
        normed = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
        return normed.to(self.dtype) * weight.to(self.dtype), summed

    def linear(self, x: Tensor, weight: LinearWeight, name: str) -> Tensor:
        match weight:
            case DenseWeight():
                y = self._matmul(x, weight.weight)
            case Int8Weight():
                dequantized = weight.weight.to(self.accumulate) * weight.weight_scale.to(self.accumulate)[:, None]
                y = self._matmul(x, dequantized.to(self.dtype))
            case Int4GroupWeight():
                y = self._matmul(x, dequantize_int4(weight, self.accumulate).to(self.dtype))
            case SmoothQuantWeight():
                q, input_scale = quantize_input(x, weight)
                scales = input_scale.to(self.accumulate) * weight.weight_scale.to(self.accumulate)
                y = (integer_matmul(q, weight.weight).to(self.accumulate) * scales).to(self.dtype)
        return y if weight.bias is None else y + weight.bias.to(self.dtype)

    def _matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x @ weight.T`` summed in float32 (float64), rounded once."""
        return functional.linear(x.to(self.accumulate), weight.to(self.accumulate)).to(self.dtype)

    def attention(
        self, qkv: Tensor, step: Step[Tensor], cache: LayerCache[Tensor], spec: AttentionSpec
    ) -> tuple[Tensor, CacheUpdate[Tensor]]:
        query, key, value = self._heads(qkv, step.positions, spec)
        self.tap(f"{spec.name}.key", key)
        self.tap(f"{spec.name}.value", value)
        update: CacheUpdate[Tensor]
        if spec.kv_scales is None:
            update = WholeCache(write_rows(cache.key, key, step.start), write_rows(cache.value, value, step.start))
            keys, values = update.key, update.value
        else:
            key_scale, value_scale = per_head(spec.kv_scales.key), per_head(spec.kv_scales.value)
            update = NewRows(quantize_int8(key, key_scale), quantize_int8(value, value_scale))
            keys = (write_rows(cache.key, update.key, step.start) * key_scale).to(self.dtype)
            values = (write_rows(cache.value, update.value, step.start) * value_scale).to(self.dtype)
        context = self._attend(query, keys, values, step.positions)
        return context.transpose(1, 2).flatten(2), update

    def _heads(self, qkv: Tensor, positions: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor, Tensor]:
        """Query (scaled by 1/sqrt(head_dim)), key and value, each ``[batch, heads, seq, head_dim]``, RoPE applied."""
        heads = qkv.view(*qkv.shape[:-1], -1, spec.head_dim).transpose(1, 2)
        query, key, value = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        rotated = rotate(query.to(self.accumulate), spec.rotary, positions) * spec.head_dim**-0.5
        key = rotate(key.to(self.accumulate), spec.rotary, positions)
        return rotated.to(self.dtype), key.to(self.dtype), value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
        """Softmax attention where the query at position p sees the cache rows 0 .. p."""
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1).to(self.accumulate) for x in (key, value))
        scores = query.to(self.accumulate) @ key.transpose(-1, -2)
        hidden = torch.arange(key.shape[2], device=key.device) > positions[:, None, :, None]
        return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value).to(self.dtype)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.to(self.accumulate).chunk(2, dim=-1)
        return (functional.silu(gate) * up).to(self.dtype)

    def gather_last(self, x: Tensor, last_token: Tensor | None) -> Tensor:
        return x if last_token is None else x[torch.arange(x.shape[0], device=x.device), last_token.long()][:, None]

    def to_float32(self, x: Tensor) -> Tensor:
        return x if self.dtype == torch.float64 else x.float()

    def all_reduce(self, x: Tensor) -> Tensor:
        return self.communicator.all_reduce(x)

    def send(self, x: Tensor) -> None:
        self.communicator.send(x, self.neighbours[1])

    def receive(self, step: Step[Tensor]) -> Tensor:
        return self.communicator.receive(self.neighbours[0])

    def tap(self, name: str, x: Tensor) -> None:
        if self.on_tap is not None:
            self.on_tap(name, x)


def dequantize_int4(weight: Int4GroupWeight, dtype: torch.dtype) -> Tensor:
    """``[out, in]`` in ``dtype``: each integer times the scale of its group."""
    integers = unpack_int4(weight.weight)
    scale = weight.weight_scale.repeat_interleave(weight.group_size, 1)[:, : integers.shape[1]]
    return integers.to(dtype) * scale.to(dtype)


def quantize_input(x: Tensor, weight: SmoothQuantWeight) -> tuple[Tensor, Tensor]:
    """INT8 activations and their scale: per token ``[..., 1]``, or the calibrated one ``[]``."""
    if weight.input_scale is None:
        return quantize_per_token(x)
    return quantize_int8(x, weight.input_scale), weight.input_scale


def integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """``[..., in] int8 @ [out, in].T int8 -> [..., out] int32``, exact on every machine."""
    rows, columns = x.reshape(-1, x.shape[-1]), weight.shape[0]
    if rows.is_cuda:
        # The CUDA kernel takes more than 16 rows and multiples of 8 columns; zeros change no sum.
        wide = -x.shape[-1] % 8
        rows, weight = functional.pad(rows, (0, wide, 0, max(0, 17 - len(rows)))), functional.pad(weight, (0, wide))
        weight = functional.pad(weight, (0, 0, 0, -columns % 8))
    product = torch._int_mm(rows, weight.t())
    return product[: x.numel() // x.shape[-1], :columns].reshape(*x.shape[:-1], columns)


def rotate(x: Tensor, tables: RotaryTables, positions: Tensor) -> Tensor:
    """RoPE on ``[batch, heads, seq, head_dim]``: pairs are (i, i + head_dim / 2)."""
    cos, sin = (table.to(x.device)[positions][:, None].to(x.dtype) for table in (tables.cos, tables.sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def write_rows(cache: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    """A copy of ``cache`` ``[batch, kv_heads, max_len, head_dim]`` with ``rows`` written from row ``start[batch]`` on.

    Raises:
        IndexError: a row would fall outside the cache.
    """
    written = cache.clone()
    for sequence, first in enumerate(start.tolist()):
        last = first + rows.shape[2]
        if last > cache.shape[2]:
            raise IndexError(f"cache rows {first}..{last - 1} of sequence {sequence}, but it holds {cache.shape[2]}")
        written[sequence, :, first:last] = rows[sequence]
    return written


def per_head(scale: Tensor) -> Tensor:
    """A scale ``[]`` or ``[kv_heads]`` that broadcasts against ``[batch, kv_heads, seq, head_dim]``."""
    return scale.reshape(-1, 1, 1)
