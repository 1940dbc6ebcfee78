"""The reference communicators: sums are the same on every rank, and mail arrives in order and unshared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

from workbench.parallel.communicator import Communicator, SingleCommunicator, ThreadGroup

T = TypeVar("T")


def run_ranks(group: ThreadGroup, work: Callable[[Communicator], T]) -> list[T]:
    with ThreadPoolExecutor(group.size) as pool:
        return list(pool.map(lambda rank: work(group.member(rank)), range(group.size)))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_reduce_is_the_sum_on_every_rank(size: int, dtype: torch.dtype) -> None:
    parts = [torch.full((2, 3), float(rank + 1), dtype=dtype) for rank in range(size)]
    sums = run_ranks(ThreadGroup(size, timeout_s=10), lambda me: me.all_reduce(parts[me.rank]))
    expected = torch.full((2, 3), size * (size + 1) / 2, dtype=dtype)
    for total in sums:
        assert total.dtype == dtype
        assert torch.equal(total, expected)


def test_all_reduce_adds_in_float32() -> None:
    """2048 + 1 is 2048 in float16, so adding one rank after the other would lose both ones."""
    parts = [torch.tensor([value], dtype=torch.float16) for value in (2048.0, 1.0, 1.0)]
    sums = run_ranks(ThreadGroup(3, timeout_s=10), lambda me: me.all_reduce(parts[me.rank]))
    assert [float(total) for total in sums] == [2050.0] * 3


def test_rounds_follow_each_other_without_mixing() -> None:
    def work(me: Communicator) -> list[float]:
        return [float(me.all_reduce(torch.tensor([10.0**turn * (me.rank + 1)]))) for turn in range(5)]

    assert run_ranks(ThreadGroup(2, timeout_s=10), work) == [[3.0, 30.0, 300.0, 3000.0, 30000.0]] * 2


def test_mail_keeps_its_order_and_is_a_copy() -> None:
    group = ThreadGroup(2, timeout_s=10)
    first, second = group.member(0), group.member(1)
    tensor = torch.tensor([1.0])
    first.send(tensor, to=1)
    tensor += 1
    first.send(tensor, to=1)
    assert [float(second.receive(0)), float(second.receive(0))] == [1.0, 2.0]


def test_a_rank_that_never_comes_is_an_error_and_no_hang() -> None:
    member = ThreadGroup(2, timeout_s=0.05).member(0)
    with pytest.raises(threading.BrokenBarrierError):
        member.all_reduce(torch.zeros(1))


def test_a_single_rank_sums_over_itself() -> None:
    tensor = torch.ones(3)
    assert torch.equal(SingleCommunicator().all_reduce(tensor), tensor)


def test_a_single_rank_has_nobody_to_write_to() -> None:
    alone = SingleCommunicator()
    with pytest.raises(RuntimeError, match="a single rank cannot send to rank 1"):
        alone.send(torch.ones(1), to=1)
    with pytest.raises(RuntimeError, match="a single rank cannot receive from rank 1"):
        alone.receive(1)
