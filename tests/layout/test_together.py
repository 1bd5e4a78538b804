"""Who hands what to whom: every element that is lacking once, from a rank that has it, and no other."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.layout.generation import Hybrid, transition
from shunter.layout.piece import Piece
from shunter.layout.together import elements, handings


def mask(piece: Piece | None, shape: tuple[int, ...]) -> np.ndarray:
    there = np.zeros(shape, dtype=bool)
    for box in piece.boxes() if piece is not None else ():
        there[box.slices(box.whole)] = True
    return there


@st.composite
def held(draw: st.DrawFn) -> tuple[tuple[Piece | None, ...], tuple[int, ...]]:
    """Parts that together are all of it: cut along any dims, in blocks, with copies and overlaps."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=3)))
    ranks = draw(st.integers(1, 6))
    pieces: list[Piece | None] = []
    for _ in range(ranks):
        piece: Piece | None = Piece.full(shape)
        for dim in range(len(shape)):
            size = piece.local_shape[dim]  # type: ignore[union-attr]
            parts = draw(st.integers(1, 3))
            blocks = [size] if draw(st.booleans()) else [size // 2, size - size // 2]
            piece = piece.share(dim, draw(st.integers(0, parts - 1)), parts, blocks)  # type: ignore[union-attr]
        pieces.append(draw(st.sampled_from([piece, piece, None])))
    pieces[draw(st.integers(0, ranks - 1))] = Piece.full(shape)
    return tuple(pieces), tuple(draw(st.integers(0, 1)) for _ in range(ranks))


@settings(max_examples=200)
@given(case=held())
def test_each_is_handed_what_it_lacks_once(case: tuple[tuple[Piece | None, ...], tuple[int, ...]]) -> None:
    pieces, copies = case
    shape = next(piece.shape for piece in pieces if piece is not None)
    has = [mask(piece, shape) for piece in pieces]
    comes = [np.zeros(shape, dtype=int) for _ in pieces]
    for way in handings(pieces, copies):
        for cell in way.cells:
            where = tuple(slice(begin, end) for begin, end in cell)
            assert has[way.giver][where].all()
            comes[way.taker][where] += 1
            near = [r for r in range(len(pieces)) if copies[r] == copies[way.taker] and has[r][where].all()]
            assert way.giver in near or not near
    for mine, found in zip(has, comes, strict=True):
        assert ((found == 1) == ~mine).all()
        assert ((found == 0) == mine).all()


@pytest.mark.parametrize(("p", "t", "d"), list(product((1, 2, 4), (1, 2, 4), (1, 2))))
def test_bytes_are_those_of_the_papers_table(p: int, t: int, d: int) -> None:
    """A matrix of each stage's layer, cut over its ranks: received, for each layout of the card."""
    layout, rows = Hybrid(p, t, d), 8 * t
    received: Counter[int] = Counter()
    given_away: Counter[int] = Counter()
    for stage in range(p):
        pieces = []
        for rank in range(layout.size):
            seat = layout.seat(rank)
            mine = Piece.full((rows, 3)).share(0, seat.t, t, [rows // 2, rows // 2])
            pieces.append(mine if seat.p == stage else None)
        for way in handings(tuple(pieces), tuple(layout.seat(rank).d for rank in range(layout.size))):
            assert layout.seat(way.giver).d == layout.seat(way.taker).d
            received[way.taker] += way.numel
            given_away[way.giver] += way.numel
    table = transition("hybridflow", layout, p * rows * 3)
    assert [received[rank] for rank in range(layout.size)] == [table.received] * layout.size
    assert [given_away[rank] for rank in range(layout.size)] == [table.received] * layout.size


def test_what_nobody_has_is_named() -> None:
    half = Piece.full((4, 2)).share(0, 0, 2)
    with pytest.raises(ValueError, match=r"no rank has \[\(2, 4\), \(0, 2\)\] of a tensor of \[4, 2\]"):
        handings((half, None), (0, 0))
    with pytest.raises(ValueError, match="no rank has any of it"):
        handings((None, None), (0, 0))


def test_an_empty_tensor_needs_nothing() -> None:
    assert handings((Piece.full((0, 3)), None), (0, 0)) == ()
    assert elements(()) == 1
