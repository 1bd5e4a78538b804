"""Which tokens ranks have under a grid, and what changes ranks where the grid changes: each token once."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.layout.piece import Piece
from shunter.layout.seats import evenly, givers, handed_over, seats

GRIDS = [
    Grid(dp=dp, fsdp=fsdp, cp=cp, tp=tp)
    for dp, fsdp, cp, tp in product((1, 2, 4), repeat=4)
    if dp * fsdp * cp * tp == 4
]


def tokens(piece: Piece) -> set[tuple[int, int]]:
    rows, places = ([n for a, b in held for n in range(a, b)] for held in piece.ranges)
    return set(product(rows, places))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("sequence", [True, False])
def test_each_token_is_somewhere_and_only_copies_have_it_twice(grid: Grid, sequence: bool) -> None:
    found = seats(grid, evenly(5, grid), 16, sequence=sequence)
    times = Counter(token for piece in found for token in tokens(piece))
    assert times.keys() == set(product(range(5), range(16)))
    assert set(times.values()) == {1 if sequence else grid.tp}


def test_every_rank_gets_what_it_needs_once_and_keeps_what_it_has() -> None:
    for before, after in product(GRIDS, repeat=2):
        for sequence in (True, False):
            source = seats(before, evenly(3, before), 16, sequence=sequence)
            target = seats(after, evenly(3, after), 16, sequence=sequence)
            chosen = givers(source, target)
            for rank, wanted in enumerate(target):
                parts = [tokens(source[giver]) & tokens(wanted) for giver in chosen[rank]]
                assert sum(map(len, parts)) == len(set().union(*parts)) == len(tokens(wanted))
                if tokens(source[rank]) & tokens(wanted):
                    assert rank in chosen[rank]
            sent = sum(handed_over(source, target, rank) for rank in range(4))
            own = sum(len(tokens(a) & tokens(b)) for a, b in zip(source, target, strict=True))
            assert sent == sum(len(tokens(piece)) for piece in target) - own


def test_nothing_moves_where_nothing_changes() -> None:
    here = seats(Grid(dp=2, tp=2), (2, 1), 8)
    assert [handed_over(here, here, rank) for rank in range(4)] == [0] * 4


def test_rows_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ShunterError, match="6"):
        seats(Grid(cp=2), (1,), 6)
