"""What was read or computed once and may be asked for again, within a limit of memory. Knows nothing about models."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Values by key; those that were asked for longest ago make room for new ones. Safe between threads.

    Args:
        limit_bytes: of all values together; the newest is held even if it alone is larger.
        make: the value of a key; runs in one thread at a time.
        size: a value's bytes.
    """

    def __init__(self, limit_bytes: int, make: Callable[[K], V], size: Callable[[V], int]) -> None:
        self.limit_bytes, self._make, self._size = limit_bytes, make, size
        self._held: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: K) -> V:
        """The value, held or made."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            value = self._make(key)
            self._held[key] = value
            total = self.nbytes
            while total > self.limit_bytes and len(self._held) > 1:
                _, oldest = self._held.popitem(last=False)
                total -= self._size(oldest)
            return value

    @property
    def keys(self) -> tuple[K, ...]:
        """What is held, the one that was asked for longest ago first."""
        return tuple(self._held)

    @property
    def nbytes(self) -> int:
        """What the held values take."""
        return sum(map(self._size, self._held.values()))
