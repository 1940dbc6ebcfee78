"""What decoding on a GPU keeps between steps, at addresses that stay. Knows no model and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.backends.kernels.decode_step import DecodeStep
from workbench.model.ops import LayerCache


@dataclass
class Decoding:
    """What decoding one bucket of rows reads and writes, all of it at fixed addresses.

    Attributes:
        caches: one per layer, ``[bucket, kv_heads, max_len, head_dim]``.
        ids: int64 ``[bucket]``, the newest token of each row; replaced by the most probable next one.
        start: int32 ``[bucket]``, how many tokens the cache holds.
        logits: float32 ``[bucket, vocab]``, once a step has run.
        kernel: a whole step, where one kernel can do it.
        graph: the captured step.
    """

    caches: list[LayerCache[Tensor]]
    ids: Tensor
    start: Tensor
    logits: Tensor | None = None
    kernel: DecodeStep | None = None
    graph: torch.cuda.CUDAGraph | None = None

    @property
    def bucket(self) -> int:
        return len(self.ids)

    @property
    def max_len(self) -> int:
        """How many tokens of a row there is room for."""
        return int(self.caches[0].key.shape[2])

    @property
    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for cache in self.caches for tensor in (cache.key, cache.value))


def bucket_of(batch: int, most: int) -> int:
    """The rows that a step is prepared for: powers of two up to 8, then multiples of 8, but no more than ``most``.

    The one kernel knows no other numbers up to 8, so those are not cut.
    """
    return 1 << (batch - 1).bit_length() if batch <= 8 else min(-(-batch // 8) * 8, most)
