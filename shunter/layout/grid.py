"""Ranks on a grid of axes, and on a second one for expert layers, folded over the same ranks.

Dense layers see the axes (pp, dp, fsdp, cp, tp), the last fastest: tensor groups are neighbours, pipeline
groups far apart. Expert layers see (pp, edp, ep, etp) over the same ranks with the same pp (arXiv
2504.14960, section 3.2; with pp outermost both grids agree on it for any legal degrees).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from shunter.config.errors import ShunterError

DENSE = ("pp", "dp", "fsdp", "cp", "tp")
EXPERT = ("pp", "edp", "ep", "etp")


@dataclass(frozen=True)
class Grid:
    """Degrees of all axes. Raises ShunterError, with the nearest legal degrees, for others.

    pp:   stages, each on its own ranks             dp:  copies of the model that see other rows
    fsdp: as dp, but weights and optimizer cut      cp:  parts of each row
    tp:   parts of each matrix, and between them parts of each row
    ep:   parts of the set of experts               etp: parts of each expert's matrices
    """

    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1

    def __post_init__(self) -> None:
        for axis in (*DENSE, "ep", "etp"):
            if getattr(self, axis) < 1:
                raise ShunterError(f"{axis} is {getattr(self, axis)}, but an axis has at least 1 rank")
        inner = self.dp * self.fsdp * self.cp * self.tp
        if inner % (self.ep * self.etp):
            legal = [degree for degree in _divisors(inner) if inner % (degree * self.etp) == 0]
            if legal:
                nearest = min(legal, key=lambda degree: abs(degree - self.ep))
                mend = f"Use ep={nearest}."
            else:
                nearest = min(_divisors(inner), key=lambda degree: abs(degree - self.etp))
                mend = f"Use etp={nearest} and ep=1."
            raise ShunterError(
                f"ep x etp is {self.ep} x {self.etp}, which does not divide the {inner} ranks of a stage "
                f"(dp {self.dp} x fsdp {self.fsdp} x cp {self.cp} x tp {self.tp})",
                mend=mend,
            )

    @property
    def size(self) -> int:
        """Ranks in all."""
        return prod(self.degree(axis) for axis in DENSE)

    @property
    def edp(self) -> int:
        """Copies of each expert."""
        return self.dp * self.fsdp * self.cp * self.tp // (self.ep * self.etp)

    def degree(self, axis: str) -> int:
        """Ranks along an axis of either grid."""
        found: int = getattr(self, axis)
        return found

    def coordinates(self, rank: int) -> dict[str, int]:
        """The place of a rank on every axis of both grids."""
        return self._place(rank, DENSE) | self._place(rank, EXPERT)

    def rank(self, **place: int) -> int:
        """The rank at a place of the dense grid, or of the expert grid; axes not named are 0."""
        axes = EXPERT if place.keys() & {"edp", "ep", "etp"} else DENSE
        if unknown := place.keys() - set(axes):
            raise ValueError(f"{sorted(unknown)} are no axes of {axes}")
        number = 0
        for axis in axes:
            number = number * self.degree(axis) + place.get(axis, 0)
        return number

    def peers(self, axes: Sequence[str], rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` at most along `axes` (of one grid), in the order of the grid."""
        grid = DENSE if set(axes) <= set(DENSE) else EXPERT
        if unknown := set(axes) - set(grid):
            raise ValueError(f"{sorted(unknown)} and the other axes are not of one grid")
        base, steps = rank, []
        here, stride = self._place(rank, grid), 1
        for axis in reversed(grid):
            if axis in axes:
                base -= here[axis] * stride
                steps.append(range(0, self.degree(axis) * stride, stride))
            stride *= self.degree(axis)
        return tuple(base + sum(offsets) for offsets in product(*reversed(steps)))

    def _place(self, rank: int, grid: Sequence[str]) -> dict[str, int]:
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is not among {self.size}")
        found = {}
        for axis in reversed(grid):
            rank, found[axis] = divmod(rank, self.degree(axis))
        return found


def _divisors(number: int) -> list[int]:
    return [degree for degree in range(1, number + 1) if number % degree == 0]
