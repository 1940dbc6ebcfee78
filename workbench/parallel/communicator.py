"""How ranks exchange tensors. One rank alone, and ranks as threads of one process; MPI and NCCL implement the same."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

import torch
from torch import Tensor


class Communicator(Protocol):
    """What the operations need from the other ranks."""

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of the same stage, same shape and dtype."""
        ...

    def send(self, tensor: Tensor, to: int) -> None:
        """Hand a tensor to another rank."""
        ...

    def receive(self, source: int) -> Tensor:
        """Wait for the tensor that another rank sends."""
        ...


class SingleCommunicator:
    """One rank: a sum over itself; nobody to send to."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def send(self, tensor: Tensor, to: int) -> None:
        raise RuntimeError(f"a single rank cannot send to rank {to}")

    def receive(self, source: int) -> Tensor:
        raise RuntimeError(f"a single rank cannot receive from rank {source}")


class ThreadGroup:
    """Ranks as threads of one process, in lockstep: the reference for every other communicator."""

    def __init__(self, size: int, *, timeout_s: float = 60.0) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self._barrier = threading.Barrier(size)
        self._slots: list[Tensor | None] = [None] * size
        self._mail: dict[tuple[int, int], queue.Queue[Tensor]] = {
            (a, b): queue.Queue() for a in range(size) for b in range(size)
        }

    def member(self, rank: int) -> ThreadCommunicator:
        return ThreadCommunicator(self, rank)

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of ranks."""
        self._slots[rank] = tensor
        self._barrier.wait(self.timeout_s)
        everyone = [slot for slot in self._slots if slot is not None]
        self._barrier.wait(self.timeout_s)
        return everyone

    def mailbox(self, source: int, to: int) -> queue.Queue[Tensor]:
        return self._mail[source, to]


class ThreadCommunicator:
    """One thread's end of a :class:`ThreadGroup`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.group = group
        self.rank = rank
        self.size = group.size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        total = torch.stack([part.float() for part in self.group.exchange(self.rank, tensor)]).sum(0)
        return total.to(tensor.dtype)

    def send(self, tensor: Tensor, to: int) -> None:
        self.group.mailbox(self.rank, to).put(tensor.clone())

    def receive(self, source: int) -> Tensor:
        return self.group.mailbox(source, self.rank).get(timeout=self.group.timeout_s)
