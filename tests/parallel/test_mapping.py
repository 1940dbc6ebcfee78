"""Whatever the sizes, every layer and every head is held exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.parallel.mapping import Mapping

sizes = st.integers(1, 6)


def ranks(tp_size: int, pp_size: int) -> list[Mapping]:
    return [Mapping(tp_size, pp_size, rank) for rank in range(tp_size * pp_size)]


@given(sizes, sizes, st.integers(0, 40))
def test_every_layer_is_held_by_one_stage_in_order(tp_size: int, pp_size: int, more: int) -> None:
    num_layers = pp_size + more
    held = [layer for rank in ranks(tp_size, pp_size) if rank.tp_rank == 0 for layer in rank.layers(num_layers)]
    assert held == list(range(num_layers))


@given(sizes, sizes, st.integers(0, 40))
def test_stages_differ_by_at_most_one_layer_and_earlier_ones_hold_more(tp_size: int, pp_size: int, more: int) -> None:
    counts = [len(rank.layers(pp_size + more)) for rank in ranks(tp_size, pp_size) if rank.tp_rank == 0]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


@given(sizes, sizes, st.integers(1, 16))
def test_every_head_is_held_once_in_every_stage(tp_size: int, pp_size: int, each: int) -> None:
    count = tp_size * each
    for stage in range(pp_size):
        held = [i for rank in ranks(tp_size, pp_size) if rank.pp_rank == stage for i in rank.split(count, "heads")]
        assert held == list(range(count))


@given(sizes, sizes)
def test_a_rank_is_its_two_coordinates(tp_size: int, pp_size: int) -> None:
    everyone = ranks(tp_size, pp_size)
    assert [rank.pp_rank * tp_size + rank.tp_rank for rank in everyone] == [rank.rank for rank in everyone]
    assert sum(rank.is_first_stage for rank in everyone) == tp_size
    assert sum(rank.is_last_stage for rank in everyone) == tp_size
    assert all(rank.world_size == len(everyone) for rank in everyone)


def test_one_rank_holds_everything() -> None:
    alone = Mapping()
    assert alone.layers(7) == range(7)
    assert alone.split(9, "heads") == range(9)
    assert alone.is_first_stage
    assert alone.is_last_stage


@pytest.mark.parametrize(("tp_size", "pp_size", "rank"), [(0, 1, 0), (1, 0, 0), (2, 2, 4), (2, 2, -1)])
def test_a_rank_outside_the_world_is_refused(tp_size: int, pp_size: int, rank: int) -> None:
    with pytest.raises(WorkbenchError) as caught:
        Mapping(tp_size, pp_size, rank)
    assert str(caught.value) == (
        f"rank {rank} of tp_size {tp_size} x pp_size {pp_size}; "
        "allowed: sizes from 1 and ranks from 0 to tp_size * pp_size - 1"
    )


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(WorkbenchError, match=r"^2 layers over pp_size 3; allowed: pp_size up to 2$"):
        Mapping(pp_size=3).layers(2)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WorkbenchError, match=r"^9 heads over tp_size 2; allowed: divisors of 9$"):
        Mapping(tp_size=2).split(9, "heads")
