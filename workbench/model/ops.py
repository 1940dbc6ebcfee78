"""The operations that a decoder needs. Four op sets implement them: torch, CPU kernels, GPU
kernels, TensorRT.

``T`` is the op set's own tensor: ``torch.Tensor``, or TensorRT's ``ITensor``. Weights are torch tensors always.
``linear`` dispatches on the weight's type. ``attention`` returns the cache *update*: the op set decides whether that
is the whole cache or only the new rows, and the session applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from workbench.model.rotary import RotaryTables
from workbench.model.weights import KVScales, LinearWeight

T = TypeVar("T")


@dataclass(frozen=True)
class Step(Generic[T]):
    """One forward pass over right-padded rows.

    Attributes:
        ids: ``[batch, seq]`` int32 or int64 token ids; unused on later pipeline stages.
        positions: ``[batch, seq]`` int64; cache row ``r`` holds the token at position ``r``.
        start: ``[batch]`` int32, the position of each row's first new token.
        last_token: ``[batch]`` int32 or int64, the index along ``seq`` whose logits are wanted; None for all.
    """

    ids: T
    positions: T
    start: T
    last_token: T | None = None


@dataclass(frozen=True)
class LayerCache(Generic[T]):
    """Keys (after RoPE) and values of one layer, each ``[batch, kv_heads, max_len, head_dim]``; int8 with KVScales."""

    key: T
    value: T


@dataclass(frozen=True)
class WholeCache(Generic[T]):
    """A cache update that is the cache itself, new rows included; the same storage where the op set wrote in place."""

    key: T
    value: T


@dataclass(frozen=True)
class NewRows(Generic[T]):
    """A cache update of only the new rows, ``[batch, kv_heads, seq, head_dim]``, for the session to write."""

    key: T
    value: T


CacheUpdate = WholeCache[T] | NewRows[T]


@dataclass(frozen=True)
class AttentionSpec:
    """What attention needs beside tensors: this rank's heads, the rotary tables, and INT8 scales if the cache is INT8.

    ``name`` is the prefix of its taps: ``layers.3.attention``.
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary: RotaryTables
    kv_scales: KVScales | None = None


class Ops(Protocol[T]):
    """One implementation of the decoder's operations. Activations are ``[batch, seq, features]`` in one dtype."""

    def embedding(self, ids: T, table: Tensor) -> T:
        """Rows of ``table`` ``[vocab, hidden]`` for ``ids`` ``[batch, seq]``."""
        ...

    def add(self, x: T, y: T) -> T:
        """The sum, rounded to the dtype."""
        ...

    def add_rms_norm(self, x: T, residual: T | None, weight: Tensor, eps: float) -> tuple[T, T]:
        """``r = x + residual`` (or x alone); returns (RMSNorm(r) * weight, r). The mean square is taken in float32."""
        ...

    def linear(self, x: T, weight: LinearWeight, name: str) -> T:
        """``[..., in] -> [..., out]`` by the weight's own rule; ``name`` is its tap (``layers.3.mlp.down``)."""
        ...

    def attention(self, qkv: T, step: Step[T], cache: LayerCache[T], spec: AttentionSpec) -> tuple[T, CacheUpdate[T]]:
        """Causal attention of the new rows over the cache and themselves, RoPE included, softmax in float32.

        ``[batch, seq, (heads + 2 * kv_heads) * head_dim] -> [batch, seq, heads * head_dim]``. With INT8 scales the
        new rows are quantized first, so that attention reads what the cache will hold.
        """
        ...

    def swiglu(self, gate_up: T) -> T:
        """``silu(gate) * up``: ``[..., 2 * intermediate] -> [..., intermediate]``, computed in float32."""
        ...

    def gather_last(self, x: T, last_token: T | None) -> T:
        """``[batch, seq, hidden] -> [batch, 1, hidden]`` at ``last_token``; None returns ``x``."""
        ...

    def to_float32(self, x: T) -> T:
        """The same values in float32: logits leave the model so."""
        ...

    def all_reduce(self, x: T) -> T:
        """The sum over the ranks of one pipeline stage."""
        ...

    def send(self, x: T) -> None:
        """Hand the residual stream to the next pipeline stage."""
        ...

    def receive(self, step: Step[T]) -> T:
        """The residual stream ``[batch, seq, hidden]`` from the previous pipeline stage."""
        ...

    def tap(self, name: str, x: T) -> None:
        """Offer a named tensor to whoever listens; see :mod:`workbench.model.taps`."""
        ...
