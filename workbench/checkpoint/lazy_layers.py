"""A sequence of decoder layers that are read when they are asked for. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from workbench.model.weights import LayerWeights


class LazyLayers(Sequence[LayerWeights]):
    """Decoder layers that are read when indexed, and not kept.

    Args:
        count: how many there are.
        read: reads one, by its index from 0.
    """

    def __init__(self, count: int, read: Callable[[int], LayerWeights]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        if isinstance(index, slice):
            return [self._read(layer) for layer in range(*index.indices(self._count))]
        return self._read(range(self._count)[index])

    def __iter__(self) -> Iterator[LayerWeights]:
        return map(self._read, range(self._count))
