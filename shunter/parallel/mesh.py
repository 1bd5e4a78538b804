"""The process groups of a grid, as seen from one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from shunter.layout.grid import DENSE, EXPERT, Grid


@dataclass(frozen=True)
class Peers:
    """The ranks along one axis, or along several taken together, as one of them sees them.

    group: None when it is alone. ranks: global, in the order of the axis. index: its own place among them.
    """

    group: dist.ProcessGroup | None
    ranks: tuple[int, ...]
    index: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    @classmethod
    def alone(cls, rank: int = 0) -> Peers:
        """One rank that talks to nobody."""
        return cls(None, (rank,), 0)


class ProcessGroups:
    """Process groups by their ranks, made once: fresh ones for each layout would leak threads and files.

    Every rank of the world has to ask for the same lists in the same order. options: of `new_group`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._made: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def get(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """The group over `ranks`; None for one rank alone."""
        key = tuple(ranks)
        if len(key) < 2:
            return None
        if key not in self._made:
            self._made[key] = dist.new_group(list(key), **self.options)
        return self._made[key]


class Mesh:
    """A grid's groups on one rank. Every rank of the world makes it at the same time.

    rank: this rank's number on the grid; ranks of the world beyond the grid's size make it with None.
    combined: axes that are also wanted together, such as ("dp", "fsdp", "cp").
    """

    def __init__(
        self,
        grid: Grid,
        rank: int | None,
        groups: ProcessGroups | None = None,
        *,
        combined: Sequence[tuple[str, ...]] = (),
        timeout: float = 600.0,
    ) -> None:
        groups = groups or ProcessGroups(timeout=timedelta(seconds=timeout))
        self.grid = grid
        self.rank = 0 if rank is None else rank
        self.place = grid.coordinates(self.rank)
        wanted = [(axis,) for axis in dict.fromkeys((*DENSE, *EXPERT))] + [*COMBINED, *combined]
        self._peers: dict[tuple[str, ...], Peers] = {}
        for axes in dict.fromkeys(wanted):
            for ranks in dict.fromkeys(grid.peers(axes, each) for each in range(grid.size)):
                group = groups.get(ranks)
                if rank is not None and rank in ranks:
                    self._peers[axes] = Peers(group, ranks, ranks.index(rank))

    def peers(self, *axes: str) -> Peers:
        """Along one axis, or along several of one grid."""
        return self._peers[axes]


# What gradients, counts of tokens and norms are summed over.
COMBINED = (
    ("dp", "fsdp"),
    ("fsdp", "cp"),
    ("dp", "fsdp", "cp"),
    ("dp", "fsdp", "cp", "tp"),
    ("cp", "tp"),
    ("ep", "etp"),
    DENSE,
)
