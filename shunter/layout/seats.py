"""Which tokens of a micro-batch each rank of a stage has between products, under any grid of these ranks.

Layers of a stage may have degrees of their own over the same ranks (Galvatron, arXiv 2211.13878, section 3).
Where the grid changes from one layer to the next, hidden states change ranks: what a rank gives and gets
follows from its pieces under both grids. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from shunter.layout.context_traffic import chunk_length
from shunter.layout.grid import Grid
from shunter.layout.piece import Piece, balanced

Seats = tuple[Piece, ...]  # of each rank of a stage, in order: its piece of [rows, tokens of a row]


def seats(grid: Grid, counts: Sequence[int], length: int, *, sequence: bool = True) -> Seats:
    """counts: rows of each data rank, in order. Context ranks have a chunk near a row's begin and one near
    its end; with `sequence` tensor ranks have a part of these tokens each, else all of them.

    Raises ShunterError for rows that cannot be cut so.
    """
    bounds = [0, *accumulate(counts)]
    whole = Piece.full((bounds[-1], length))
    found = []
    for rank in range(grid.size // grid.pp):
        place = grid.coordinates(rank)
        data = place["dp"] * grid.fsdp + place["fsdp"]
        piece = whole.take(0, (bounds[data], bounds[data + 1]))
        if grid.cp > 1:
            step = chunk_length(length, grid.cp)
            early, late = place["cp"], 2 * grid.cp - 1 - place["cp"]
            piece = piece.take(1, *((chunk * step, (chunk + 1) * step) for chunk in (early, late)))
        if grid.tp > 1 and sequence:
            piece = piece.share(1, place["tp"], grid.tp)
        found.append(piece)
    return tuple(found)


def evenly(rows: int, grid: Grid) -> tuple[int, ...]:
    """Rows of each data rank: they differ by at most one, and may be none."""
    data = grid.dp * grid.fsdp
    bounds = [balanced(rows, data, index) for index in range(data)]
    return tuple(end - begin for begin, end in bounds)


def givers(source: Seats, target: Seats) -> tuple[tuple[int, ...], ...]:
    """Of each rank, from whom it gets what it has under the target: from itself what it has already, else
    from those that have it, in turn where they are several."""
    holders: dict[Piece, list[int]] = {}
    for rank, piece in enumerate(source):
        holders.setdefault(piece, []).append(rank)
    return tuple(
        tuple(
            sorted(
                rank if rank in ranks else ranks[rank % len(ranks)]
                for piece, ranks in holders.items()
                if common(piece, wanted)
            )
        )
        for rank, wanted in enumerate(target)
    )


def common(one: Piece, other: Piece) -> int:
    """Tokens that are in both."""
    return prod(
        sum(max(0, min(b, d) - max(a, c)) for a, b in mine for c, d in theirs)
        for mine, theirs in zip(one.ranges, other.ranges, strict=True)
    )


def handed_over(source: Seats, target: Seats, rank: int) -> int:
    """Tokens that a rank gives to others."""
    return sum(
        common(source[rank], wanted)
        for other, (wanted, chosen) in enumerate(zip(target, givers(source, target), strict=True))
        if other != rank and rank in chosen
    )
