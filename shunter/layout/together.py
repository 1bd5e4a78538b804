"""Which rank hands what to whom, so that each has all of a tensor of which ranks hold parts.

A rank is handed what it lacks and nothing else, each element once: of M bytes of which it holds m, M - m.
With p stages and t parts that is (p t - 1) / (p t) M, as in arXiv 2409.19256, table 2, for one stage and one
part to write with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

from shunter.layout.piece import Piece, Range

Cell = tuple[Range, ...]  # a block of the whole, by its range along each dim


@dataclass(frozen=True)
class Handing:
    """Blocks of one tensor that one rank hands to another, one after the other."""

    giver: int
    taker: int
    cells: tuple[Cell, ...]

    @property
    def numel(self) -> int:
        """Elements that are handed over."""
        return sum(elements(cell) for cell in self.cells)


@lru_cache(maxsize=4096)
def handings(pieces: tuple[Piece | None, ...], copies: tuple[int, ...]) -> tuple[Handing, ...]:
    """In one order for all ranks. pieces: what each rank holds; None: nothing. copies: the copy of the model
    that each is of: who lacks something gets it from its own copy, where that has it, as its ranks are near.
    Ranks that hold the same share the work.

    Raises ValueError where no rank holds some element.
    """
    there = [piece for piece in pieces if piece is not None]
    if not there:
        raise ValueError("no rank has any of it")
    shape, found = there[0].shape, dict[tuple[int, int], list[Cell]]()
    for cell in _cells(shape, there):
        have = [rank for rank, piece in enumerate(pieces) if piece is not None and piece.has(cell)]
        if not have:
            raise ValueError(f"no rank has {list(cell)} of a tensor of {list(shape)}")
        holders = set(have)
        lack: dict[tuple[int, ...], list[int]] = {}
        for rank in range(len(pieces)):
            if rank not in holders:
                near = tuple(each for each in have if copies[each] == copies[rank])
                lack.setdefault(near or tuple(have), []).append(rank)
        for givers, takers in lack.items():
            for number, taker in enumerate(takers):
                giver = givers[number * len(givers) // len(takers)]
                found.setdefault((giver, taker), []).append(cell)
    return tuple(Handing(giver, taker, tuple(cells)) for (giver, taker), cells in sorted(found.items()))


def elements(cell: Cell) -> int:
    """How many a block has."""
    count = 1
    for begin, end in cell:
        count *= end - begin
    return count


def _cells(shape: Sequence[int], pieces: Sequence[Piece]) -> list[Cell]:
    """The largest blocks of which each piece has all or nothing."""
    along = []
    for dim, size in enumerate(shape):
        edges = {0, size} | {edge for piece in pieces for held in piece.ranges[dim] for edge in held}
        along.append(list(pairwise(sorted(edges))))
    return [cell for cell in product(*along) if elements(cell)]
