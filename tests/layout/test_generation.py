"""The ranks of a layout to learn in and one to write in. Pure algebra: no process is needed."""

from __future__ import annotations

from itertools import product

import pytest

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid, transition

LAYOUTS = [
    Hybrid(p, t, d, pg, tg)
    for p, t, d in product((1, 2, 4), (1, 2, 4), (1, 2))
    for pg, tg in product((1, 2, 4), (1, 2, 4))
    if p % pg == 0 and t % tg == 0
]


def shard(layout: Hybrid, rank: int) -> frozenset[tuple[int, int]]:
    """Stage and part that a rank learns with, in the finest cut."""
    seat = layout.seat(rank)
    return frozenset({(seat.p, seat.t)})


def written(layout: Hybrid, rank: int) -> frozenset[tuple[int, int]]:
    """Those of what it writes with."""
    seat = layout.seat(rank)
    stages = range(seat.pg * layout.p // layout.pg, (seat.pg + 1) * layout.p // layout.pg)
    parts = range(seat.tg * layout.t // layout.tg, (seat.tg + 1) * layout.t // layout.tg)
    return frozenset(product(stages, parts))


def test_the_example_of_the_paper() -> None:
    layout = Hybrid(p=1, t=4, d=2, pg=1, tg=2)
    assert layout.micro == 2
    # Ranks count from 1 there.
    found = {tuple(rank + 1 for rank in layout.tensor_group(rank)) for rank in range(8)}
    assert found == {(1, 3), (2, 4), (5, 7), (6, 8)}
    found = {tuple(rank + 1 for rank in layout.micro_group(rank)) for rank in range(8)}
    assert found == {(1, 2), (3, 4), (5, 6), (7, 8)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_a_rank_learns_with_lies_inside_what_it_writes_with(layout: Hybrid) -> None:
    for rank in range(layout.size):
        mine = written(layout, rank)
        assert shard(layout, rank) <= mine
        # The group has exactly the shards that are needed, each once.
        shards = [shard(layout, other) for other in layout.micro_group(rank)]
        assert frozenset().union(*shards) == mine
        assert len(shards) == len(set(shards)) == layout.micro


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_copy_that_writes_has_the_whole_model_once(layout: Hybrid) -> None:
    copies: dict[int, list[int]] = {}
    for rank in range(layout.size):
        copies.setdefault(layout.seat(rank).copy, []).append(rank)
    assert sorted(copies) == list(range(layout.copies))
    for ranks in copies.values():
        seats = sorted((layout.seat(rank).pg, layout.seat(rank).tg) for rank in ranks)
        assert seats == sorted(product(range(layout.pg), range(layout.tg)))
        # Copies that write come from the ranks of one copy that learns, and stand side by side.
        (d,) = {layout.seat(rank).d for rank in ranks}
        assert layout.seat(ranks[0]).copy // layout.micro == d
        for rank in ranks:
            assert set(layout.tensor_group(rank)) <= set(ranks)
            assert set(layout.pipeline_group(rank)) <= set(ranks)
            assert [layout.seat(it).tg for it in layout.tensor_group(rank)] == list(range(layout.tg))
            assert [layout.seat(it).pg for it in layout.pipeline_group(rank)] == list(range(layout.pg))


def test_neighbours_as_frameworks_group_them_learn_with_what_they_do_not_write_with() -> None:
    layout = Hybrid(p=1, t=4, d=1, pg=1, tg=2, vanilla=True)
    assert [layout.seat(rank).tg for rank in range(4)] == [0, 1, 0, 1]
    outside = [rank for rank in range(4) if not shard(layout, rank) <= written(layout, rank)]
    assert outside == [1, 2]


def test_the_table_in_its_own_example() -> None:
    layout = Hybrid(p=1, t=4, d=2, pg=1, tg=2)
    assert transition("hybridflow", layout, 8.0) == (2.0, 4.0, 0.0)
    assert transition("vanilla", layout, 8.0) == (6.0, 8.0, 2.0)
    assert transition("sharded", layout, 8.0) == (7.0, 8.0, 1.0)


def test_degrees_that_do_not_divide_are_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ShunterError, match=r"tg=3 does not divide t=4.*Use tg=2"):
        Hybrid(t=4, tg=3)
    with pytest.raises(ShunterError, match="at least 1 rank"):
        Hybrid(p=0)
