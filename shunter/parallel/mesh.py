"""The process groups of a grid, as seen from one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed import default_pg_timeout

from shunter.layout.grid import DENSE, EXPERT, Grid
from shunter.parallel.heartbeat import Heartbeat


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


class Groups(NamedTuple):
    """Process groups for messages to higher and to lower ranks, and for collectives beside them.

    ranks[i] is the global rank of pipeline rank i.
    """

    up: dist.ProcessGroup | None
    down: dist.ProcessGroup | None
    ranks: tuple[int, ...]
    side: dist.ProcessGroup | None

    @classmethod
    def create(cls, ranks: Sequence[int], **options: Any) -> Groups:
        """The groups over `ranks`. Every rank of the world has to call this, in the same order."""
        up, down, side = (dist.new_group(list(ranks), **options) for _ in range(3))
        return cls(up, down, tuple(ranks), side)

    def peers(self, rank: int) -> Peers:
        """As pipeline rank `rank` sees them, for collectives between steps."""
        return Peers(self.up, self.ranks, rank)


class ProcessGroups:
    """Process groups by their ranks, made once: fresh ones for each layout would leak threads and files.

    Every rank of the world has to ask for the same lists in the same order: torch names a group by how many
    a rank has made, even with local synchronization. store: that all ranks reach, where some work alone while
    others wait (`heartbeat`). options: of `new_group`.
    """

    def __init__(self, *, store: Any = None, **options: Any) -> None:
        self.store, self.options = store, options
        self._made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._pipelines: dict[tuple[int, ...], Groups] = {}
        self._beside: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._hearts: dict[tuple[int, ...], Heartbeat] = {}

    def get(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """The group over `ranks`; None for one rank alone."""
        key = tuple(ranks)
        if len(key) < 2:
            return None
        if key not in self._made:
            self._made[key] = dist.new_group(list(key), **self.options)
        return self._made[key]

    def pipeline(self, ranks: Sequence[int]) -> Groups:
        """The groups of a pipeline over `ranks`."""
        key = tuple(ranks)
        if key not in self._pipelines:
            self._pipelines[key] = Groups.create(key, **self.options)
        return self._pipelines[key]

    def beside(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """A second group over `ranks`, of messages between hosts: for a thread beside the one that computes.
        None for one rank alone."""
        key = tuple(ranks)
        if len(key) < 2:
            return None
        if key not in self._beside:
            self._beside[key] = dist.new_group(list(key), backend="gloo", **self.options)
        return self._beside[key]

    def heartbeat(self, ranks: Sequence[int], rank: int) -> Heartbeat | None:
        """By which the ranks see that each other lives, for as long as messages may take. None for one rank
        alone, or without a store: then messages alone tell who is there."""
        key = tuple(ranks)
        if len(key) < 2 or self.store is None:
            return None
        if key not in self._hearts:
            silent = self.options.get("timeout", default_pg_timeout).total_seconds()
            self._hearts[key] = Heartbeat(self.store, rank, key, silent)
        return self._hearts[key]


class Mesh:
    """A grid's groups on one of its ranks. All ranks of the world make it at the same time.

    others: further grids over the same ranks and stages, in one order on all ranks; see `at`.
    """

    def __init__(self, grid: Grid, rank: int, groups: ProcessGroups, others: Sequence[Grid] = ()) -> None:
        self.grid, self.rank, self._groups = grid, rank, groups
        self.place = grid.coordinates(rank)
        make_groups(grid, groups)
        self._peers: dict[tuple[str, ...], Peers] = {(): Peers.alone(rank)}
        for axes in _wanted(grid):
            ranks = grid.peers(axes, rank)
            self._peers[axes] = Peers(groups.get(ranks), ranks, ranks.index(rank))
        self.pipeline = groups.pipeline(grid.peers(("pp",), rank)) if grid.pp > 1 else None
        self._others = {other: Mesh(other, rank, groups) for other in others}

    def at(self, grid: Grid | None) -> Mesh:
        """The same ranks under one of the other grids; None: this one."""
        return self if grid is None or grid == self.grid else self._others[grid]

    def peers(self, *axes: str) -> Peers:
        """Along these axes of one grid taken together, in the grid's order."""
        grid = DENSE if set(axes) <= set(DENSE) else EXPERT
        return self._peers[tuple(axis for axis in grid if axis in axes and self.grid.degree(axis) > 1)]

    def real(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Those of the axes along which there is more than one rank."""
        return tuple(axis for axis in axes if self.grid.degree(axis) > 1)

    @property
    def everyone(self) -> Peers:
        """All ranks of the grid."""
        return self.peers(*DENSE)

    @property
    def heartbeat(self) -> Heartbeat | None:
        """Of all ranks of the grid."""
        return self._groups.heartbeat(self.everyone.ranks, self.rank)

    def beside(self) -> Peers:
        """All ranks once more, by a group that only a thread beside the training uses. All ranks of the world
        ask for it at the same time."""
        everyone = self.everyone
        return Peers(self._groups.beside(everyone.ranks), everyone.ranks, everyone.index)


def make_groups(grid: Grid, groups: ProcessGroups) -> None:
    """All groups of a grid. What ranks of the world beyond the grid do instead of making a Mesh."""
    for axes in _wanted(grid):
        for ranks in dict.fromkeys(grid.peers(axes, rank) for rank in range(grid.size)):
            groups.get(ranks)
    if grid.pp > 1:
        for ranks in dict.fromkeys(grid.peers(("pp",), rank) for rank in range(grid.size)):
            groups.pipeline(ranks)


def _wanted(grid: Grid) -> Iterator[tuple[str, ...]]:
    """Sets of axes along which there is more than one rank; those with pp are wanted whole or alone."""
    for axes in (DENSE, EXPERT):
        real = [axis for axis in axes if grid.degree(axis) > 1]
        for count in range(1, len(real) + 1):
            for chosen in combinations(real, count):
                if "pp" not in chosen or count in (1, len(real)):
                    yield chosen
