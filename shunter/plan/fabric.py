"""A cluster as the cost model sees it: levels of links, and devices in blocks. Imports without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np
import numpy.typing as npt

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Link
from shunter.cluster.device import DeviceKind
from shunter.plan.terrain import Terrain, differs


@dataclass(frozen=True)
class Level:
    """extent: neighbouring ranks that this link or a faster one joins. share: links of the kind for each
    rank of the next smaller level's block, such as NICs by devices of a node."""

    extent: int
    latency: float
    bandwidth: float
    share: float = 1.0


@dataclass(frozen=True)
class Fabric:
    """levels: from close to far. kinds: of each block of `block` neighbouring ranks, its slowest device.

    terrain: of a cluster whose devices or links differ, its links pair by pair; there the levels are a first
    look, and what counts is where ranks are placed (`plan.placing`). None where all nodes are alike.
    """

    name: str
    world: int
    levels: tuple[Level, ...]
    kinds: tuple[DeviceKind, ...]
    block: int
    price_per_hour: float | None = None
    terrain: Terrain | None = field(default=None, compare=False, repr=False)
    whole: int = 0  # devices of a node as it is described, where it has more than are used

    @property
    def node(self) -> int:
        """Devices of a whole node."""
        return max(self.whole, self.block)

    @classmethod
    def of(cls, cluster: Cluster) -> Fabric:
        """What is slowest stands for a level, so that a ring through it is no faster than its slowest link.

        Of nodes that differ in size a block is their greatest common part; of links that differ pair by pair
        the one in the middle stands for all, as placement keeps off the slow ones.
        """
        if differs(cluster):
            return cls._uneven(cluster)
        size = len(cluster.nodes[0].ranks)
        levels: list[Level] = []
        groups = {node.group: node.ranks for node in reversed(cluster.nodes)}  # the first of each
        firsts = list(groups.values())
        packages = {cluster.group(ranks[0]).package for ranks in firsts}
        if len(packages) == 1 and (package := packages.pop()) and size > package.size:
            link = cluster.description.links[package.link]
            levels.append(Level(package.size, link.latency, link.bandwidth))
        if size > 1:
            inside = _slowest(
                [cluster.link(a, b) for ranks in firsts for a in ranks[:1] for b in ranks[1:]]
                + [cluster.link(b, a) for ranks in firsts for a in ranks[:1] for b in ranks[1:]]
            )
            levels.append(Level(size, inside.latency, inside.bandwidth))
        if len(cluster.nodes) > 1:
            heads = [node.ranks[0] for node in cluster.nodes]
            if not cluster.description.pairs:
                heads = [rank for ranks in firsts for rank in ranks[:1]] + heads[1:2] + heads[-1:]
            between = _slowest([cluster.link(a, b) for a in heads for b in heads if a != b])
            nics = min(cluster.group(ranks[0]).nics for ranks in firsts)
            levels.append(Level(cluster.world, between.latency, between.bandwidth, min(1.0, nics / size)))
        kinds = tuple(
            min((cluster.device(rank).spec for rank in node.ranks), key=_speed) for node in cluster.nodes
        )
        return cls(
            cluster.name, cluster.world, tuple(levels), kinds, size, cluster.price_per_hour,
            whole=cluster.group(0).devices,
        )  # fmt: skip

    @classmethod
    def _uneven(cls, cluster: Cluster) -> Fabric:
        """Levels: a block, what is between neighbours of one group of nodes, and the rest."""
        block = gcd(*(len(node.ranks) for node in cluster.nodes))
        levels: list[Level] = []
        if block > 1:
            inside = [
                cluster.link(node.ranks[0], other) for node in cluster.nodes for other in node.ranks[1:]
            ]
            slow = _slowest(inside)
            levels.append(Level(block, slow.latency, slow.bandwidth))
        share = min(1.0, *(cluster.group(node.ranks[0]).nics / len(node.ranks) for node in cluster.nodes))
        groups: dict[str, list[int]] = {}
        for node in cluster.nodes:
            groups.setdefault(node.group, []).append(node.ranks[0])
        within = [cluster.link(a, b) for heads in groups.values() for a in heads for b in heads if a != b]
        island = gcd(*(len(ranks) for ranks in cluster.groups().values()))
        if within and block < island < cluster.world:
            middle = _middle(within)
            levels.append(Level(island, middle.latency, middle.bandwidth, share))
        heads = [node.ranks[0] for node in cluster.nodes]
        if len(heads) > 1:
            between = [cluster.link(a, b) for a in heads for b in heads if a != b]
            link = _middle(between) if cluster.description.pairs else _slowest(between)
            levels.append(Level(cluster.world, link.latency, link.bandwidth, share))
        kinds = tuple(
            cluster.device(node.ranks[0]).spec
            for node in cluster.nodes
            for _ in range(len(node.ranks) // block)
        )
        return cls(
            cluster.name, cluster.world, tuple(levels), kinds, block, cluster.price_per_hour, Terrain(cluster)
        )

    @property
    def device(self) -> DeviceKind:
        """The slowest."""
        return min(set_of(self.kinds), key=_speed)

    @property
    def memory(self) -> float:
        """Bytes of the smallest device."""
        return min(kind.memory for kind in set_of(self.kinds))

    def room(self, budget: float | None) -> float:
        """Bytes of any device that a rank may take at most; no device is given more than it has.

        Where devices differ: those of the largest, as a stage is held to the devices that it is placed on.
        """
        most = self.memory if self.terrain is None else max(kind.memory for kind in set_of(self.kinds))
        return most if budget is None else min(budget, most)

    def peak(self, format: str) -> float:
        """FLOP/s that a device's maker states, on average over the devices."""
        kinds = self.kinds if self.terrain is not None else (self.device,)
        peaks = [kind.peak(format if format in kind.flops else next(iter(kind.flops))) for kind in kinds]
        return sum(peaks) / len(peaks)

    def kind(self, begin: int, end: int) -> DeviceKind:
        """The slowest device among ranks [begin, end)."""
        first, last = begin // self.block, -(-end // self.block)
        return min(set_of(self.kinds[first : max(last, first + 1)]), key=_speed)

    def wire(
        self, stride: npt.NDArray[np.int64], count: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(seconds until an empty message has gone round, bytes a second of each rank) of rings of `count`
        ranks `stride` apart.

        A ring that leaves a block crosses as many of its links as it has ranks there, and each rank's bytes
        pass any of them, so the block's links count together. Latency: each rank within a block in turn,
        blocks as a tree.
        """
        latency = np.zeros(np.broadcast(stride, count).shape)
        bandwidth = np.full_like(latency, 1e300)
        below, inner = np.ones_like(stride), 1
        for number, level in enumerate(self.levels):
            reach = np.minimum(stride * count, level.extent)
            ranks = np.maximum(
                reach // np.maximum(stride, 1), 1
            )  # of the group, within a block of this level
            steps = np.maximum(ranks // below, 1)
            there = (steps > 1) & (count > 1)
            last = number > 0 and number == len(self.levels) - 1
            hops = np.ceil(np.log2(np.maximum(steps, 1))) if last else steps - 1
            latency = latency + np.where(there, hops * level.latency, 0.0)
            # Members in one block of the level below, which leave it together.
            together = np.maximum(inner // np.maximum(stride, 1), 1) if number else np.ones_like(stride)
            together = np.minimum(together, count)
            speed = level.bandwidth * level.share * np.maximum(together, 1)
            bandwidth = np.where(there, np.minimum(bandwidth, speed), bandwidth)
            below, inner = np.maximum(ranks, 1), level.extent
        return latency, bandwidth

    def hop(
        self, stride: npt.NDArray[np.int64], count: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(latency, bytes a second) of the slowest message along a chain of `count` ranks `stride` apart."""
        latency = np.zeros(np.broadcast(stride, count).shape)
        bandwidth = np.full_like(latency, 1e300)
        for level in reversed(self.levels):
            here = (stride * count <= level.extent) & (count > 1)
            latency = np.where(here, level.latency, latency)
            bandwidth = np.where(here, level.bandwidth * level.share, bandwidth)
        return latency, bandwidth

    def between(self, first: int, second: int, width: int) -> tuple[float, float]:
        """(latency, bytes a second) of the slowest message from a rank of `width` neighbours at `first` to
        its like at `second`: by the smallest blocks that have both of each pair."""
        places = np.arange(width)
        for level in self.levels:
            if np.array_equal((first + places) // level.extent, (second + places) // level.extent):
                # So many of a block's ranks send at once, and share its links.
                share = min(1.0, level.share * self.block / min(width, self.block))
                return level.latency, level.bandwidth * share
        return 0.0, 1e300


def set_of(kinds: Sequence[DeviceKind]) -> list[DeviceKind]:
    """Without repetitions, by identity: a cluster has few kinds and many devices."""
    return list({id(kind): kind for kind in kinds}.values())


def _speed(kind: DeviceKind) -> float:
    return max(rates.peak for rates in kind.flops.values())


def _middle(links: Sequence[Link]) -> Link:
    """The one with as many slower ones as faster ones."""
    return sorted(links, key=lambda link: (link.bandwidth, -link.latency))[len(links) // 2]


def _slowest(links: Sequence[Link]) -> Link:
    return min(links, key=lambda link: (link.bandwidth, -link.latency))
