"""What a rank holds of each parameter, and what it owes the other ranks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from shunter.layout.grid import DENSE, EXPERT, Grid
from shunter.layout.piece import Piece, Range


@dataclass(frozen=True)
class Shared:
    """Rows of a part that some neighbours along an axis hold too, each with its own part of the gradient.

    dim 0, [begin, end) of the part. every: so many neighbours, beginning at a multiple of it, share them.
    """

    begin: int
    end: int
    axis: str
    every: int


@dataclass(frozen=True)
class Holding:
    """piece:   the part of the whole.
    partial: axes whose ranks each have a part of its gradient, still to be added up.
    cut:     axes (of one grid) along which ranks hold different parts; along the others they hold the same.
    shared:  exceptions to `cut`.
    grid:    whose axes these are, over the same ranks; None: the layout's own.
    """

    piece: Piece
    partial: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    shared: tuple[Shared, ...] = ()
    grid: Grid | None = None

    def copies(self, grid: Grid) -> int:
        """Ranks of a stage that hold the same (but for what `shared` says). grid: the layout's own."""
        grid = self.grid or grid
        dense = grid.dp * grid.fsdp * grid.cp * grid.tp
        return dense // prod(grid.degree(axis) for axis in self.cut)

    def is_first(self, place: Mapping[str, int]) -> bool:
        """Whether the rank at `place` of its grid is the first of those of its stage that hold the same."""
        axes = EXPERT if {*self.cut, *self.partial} & {*EXPERT[1:]} else DENSE
        return all(place[axis] == 0 for axis in axes[1:] if axis not in self.cut)

    def sharded(self, index: int, parts: int, axes: tuple[str, ...]) -> Holding:
        """Cut further by rows, as `fully_shard` over `axes` cuts: parts as large as possible, the last ones
        smaller or empty. It adds the gradient up over those axes itself.
        """
        rows = self.piece.local_shape[0]
        size = -(-rows // parts)
        begin, end = min(index * size, rows), min((index + 1) * size, rows)
        return replace(
            self,
            piece=self.piece.take(0, (begin, end)),
            partial=tuple(axis for axis in self.partial if axis not in axes),
            cut=(*self.cut, *axes),
            shared=tuple(part for each in self.shared if (part := _within(each, (begin, end)))),
        )


def _within(shared: Shared, rows: Range) -> Shared | None:
    begin, end = max(shared.begin, rows[0]), min(shared.end, rows[1])
    return replace(shared, begin=begin - rows[0], end=end - rows[0]) if begin < end else None
