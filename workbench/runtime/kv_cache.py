"""The keys and values of the tokens seen so far. Knows how updates are applied, nothing about how they are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.model.config import ModelConfig
from workbench.model.ops import CacheUpdate, LayerCache, WholeCache

BLOCK_ROWS = 256


class KVCache:
    """One :class:`LayerCache` per layer, each tensor ``[batch, kv_heads, rows, head_dim]``.

    Rows are held in advance and grow by doubling up to ``max_len``, so that an op set which reads whole tensors pays
    for the sequence and not for the limit. Rows that were never written are zero: an op set may read and mask them.
    """

    def __init__(self, layers: list[LayerCache[Tensor]], max_len: int) -> None:
        self.layers = layers
        self.max_len = max_len

    @classmethod
    def allocate(
        cls, config: ModelConfig, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> KVCache:
        """An empty cache with room for ``max_len`` rows of every head of every layer; int8 where scales go with it."""
        shape = (batch, config.num_kv_heads, min(BLOCK_ROWS, max_len), config.head_dim)

        def empty() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls([LayerCache(empty(), empty()) for _ in range(config.num_layers)], max_len)

    @property
    def rows(self) -> int:
        """Rows held now; :meth:`reserve` raises it."""
        return self.layers[0].key.shape[2] if self.layers else self.max_len

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.key, layer.value))

    def reserve(self, length: int) -> None:
        """Make room for ``length`` rows.

        Raises:
            IndexError: more than ``max_len`` rows; sessions refuse such a request before it comes here.
        """
        if length > self.max_len:
            raise IndexError(f"{length} cache rows asked for, but the cache may hold {self.max_len}")
        rows = self.rows
        if length <= rows:
            return
        while rows < length:
            rows *= 2
        rows = min(rows, self.max_len)
        self.layers = [LayerCache(_grown(layer.key, rows), _grown(layer.value, rows)) for layer in self.layers]

    def apply(self, updates: Sequence[CacheUpdate[Tensor]], start: Tensor) -> None:
        """Take over what one forward pass returned.

        Args:
            updates: one per layer. A whole cache replaces the layer's (nothing is copied where the op set wrote in
                place); new rows ``[batch, kv_heads, seq, head_dim]`` are written.
            start: ``[batch]``, the row at which each sequence's new rows begin.
        """
        firsts = start.tolist()
        for index, update in enumerate(updates):
            if isinstance(update, WholeCache):
                self.layers[index] = LayerCache(update.key, update.value)
                continue
            layer = self.layers[index]
            for sequence, first in enumerate(firsts):
                last = first + update.key.shape[2]
                layer.key[sequence, :, first:last] = update.key[sequence]
                layer.value[sequence, :, first:last] = update.value[sequence]


def _grown(tensor: Tensor, rows: int) -> Tensor:
    batch, heads, held, head_dim = tensor.shape
    wider = tensor.new_zeros(batch, heads, rows, head_dim)
    wider[:, :, :held] = tensor
    return wider
