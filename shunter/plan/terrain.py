"""The links of a cluster whose devices or links differ, as groups of ranks see them. Imports without torch.

`plan.fabric` has one link a level, the slowest; here each group is asked for the links that it really passes.
On a cluster of equal nodes both say the same (`tests/plan/test_terrain.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

from shunter.cluster.cluster import Cluster

ALIKE = 1.25  # links whose bandwidths differ by no more than this are one: so much a measurement wavers

Wire = tuple[float, float]  # seconds until an empty message has passed, bytes a second


def differs(cluster: Cluster) -> bool:
    """Whether it matters which device does what: nodes of several kinds, sizes or NICs, or links between
    pairs that are not alike."""
    described = cluster.description
    kinds = {
        (len(node.ranks), group.device, group.inside, group.between, group.nics, group.price_per_hour)
        for node in cluster.nodes
        for group in (described.nodes[node.group],)
    }
    if len(kinds) > 1:
        return True
    groups = {node.group for node in cluster.nodes}
    if len(groups) > 1 and described.between not in {described.nodes[name].between for name in groups}:
        return True
    if not described.pairs:
        return False
    if any("/" in end for pair in described.pairs for end in pair.ends) and any(
        not _alike(cluster, node.ranks) for node in cluster.nodes
    ):
        return True
    return not _alike(cluster, [node.ranks[0] for node in cluster.nodes])


def _alike(cluster: Cluster, ranks: Sequence[int]) -> bool:
    """Links among these, within `ALIKE` of each other, compared at the same level alone."""
    found: dict[str, list[float]] = {}
    for a, b in combinations(ranks, 2):
        found.setdefault(cluster.level(a, b), []).extend((cluster.bandwidth(a, b), cluster.bandwidth(b, a)))
    return all(max(rates) <= ALIKE * min(rates) for rates in found.values())


class Terrain:
    """cluster: its devices by rank. share: of each rank, the part of a NIC that it has when all of its node
    send. fine: whether pairs of devices have links of their own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.share = [
            min(1.0, cluster.group(rank).nics / len(cluster.node(rank).ranks))
            for rank in range(cluster.world)
        ]
        self.fine = any("/" in end for pair in cluster.description.pairs for end in pair.ends)
        self._alone = all(len(node.ranks) == 1 for node in cluster.nodes)
        self._rings: dict[tuple[int, ...], Wire] = {}
        self._worst: dict[tuple[tuple[int, ...], int, int], Wire] = {}
        self._matrices: dict[int, list[list[Wire]]] = {}

    def hop(self, source: int, target: int) -> Wire:
        """Of messages from one rank to another, while all devices of both nodes send."""
        link = self.cluster.link(source, target)
        if self.cluster.devices[source].node == self.cluster.devices[target].node:
            return link.latency, link.bandwidth
        return link.latency, link.bandwidth * min(self.share[source], self.share[target])

    def matrix(self, unit: int) -> list[list[Wire]]:
        """`hop` between units of so many neighbouring ranks, by their first ones."""
        if unit not in self._matrices:
            firsts = range(0, self.cluster.world, unit)
            self._matrices[unit] = [
                [self.hop(a, b) if a != b else (0.0, math.inf) for b in firsts] for a in firsts
            ]
        return self._matrices[unit]

    def ring(self, ranks: Sequence[int]) -> Wire:
        """Of a ring through these ranks, node after node as they come first.

        As `Fabric.wire`: its members in a node share the node's NICs out among all that are there, so k of
        them have k shares; each link counts both ways; latency: devices of a node in turn, nodes as a tree.
        """
        key = tuple(ranks)
        if (known := self._rings.get(key)) is not None:
            return known
        nodes: dict[int, list[int]] = {}
        for rank in key:
            nodes.setdefault(self.cluster.devices[rank].node, []).append(rank)
        inside = [self._inside(members) for members in nodes.values()]
        latency, bandwidth = max(wire[0] for wire in inside), min(wire[1] for wire in inside)
        if len(nodes) > 1:
            members = list(nodes.values())
            waits = 0.0
            for here, there in zip(members, (*members[1:], members[0]), strict=True):
                parts = min(len(here) * self.share[here[0]], len(there) * self.share[there[0]])
                for a, b in ((here[0], there[0]), (there[0], here[0])):
                    link = self.cluster.link(a, b)
                    bandwidth = min(bandwidth, link.bandwidth * parts)
                    waits = max(waits, link.latency)
            turns = len(nodes) - 1 if self._alone else math.ceil(math.log2(len(nodes)))
            latency += turns * waits
        self._rings[key] = latency, bandwidth
        return latency, bandwidth

    def rings(self, ranks: tuple[int, ...], stride: int, count: int) -> Wire:
        """The slowest ring among the groups of `count` of these ranks, `stride` apart."""
        key = ranks, stride, count
        if key not in self._worst:
            found = [self.ring(ranks[a : a + stride * count : stride]) for a in _begins(ranks, stride, count)]
            self._worst[key] = max(wire[0] for wire in found), min(wire[1] for wire in found)
        return self._worst[key]

    def hops(self, ranks: tuple[int, ...], stride: int, count: int) -> Wire:
        """The slowest message between any two members of such a group."""
        latency, bandwidth = 0.0, 1e300
        for begin in _begins(ranks, stride, count):
            group = ranks[begin : begin + stride * count : stride]
            for a, b in product(group, group):
                if a != b:
                    wait, speed = self.hop(a, b)
                    latency, bandwidth = max(latency, wait), min(bandwidth, speed)
        return latency, bandwidth

    def _inside(self, members: Sequence[int]) -> Wire:
        """Of the ring's part within one node: packages in turn, and within each its devices in turn."""
        if len(members) < 2:
            return 0.0, 1e300
        cluster = self.cluster
        package = cluster.group(members[0]).package
        packages: dict[int, list[int]] = {}
        for rank in members:
            packages.setdefault(cluster.devices[rank].place // (package.size if package else 1), []).append(
                rank
            )
        latency, bandwidth = 0.0, 1e300
        for ranks in packages.values():
            for a, b in combinations(ranks, 2):
                bandwidth = min(bandwidth, cluster.bandwidth(a, b), cluster.bandwidth(b, a))
            if len(ranks) > 1:
                latency = max(latency, (len(ranks) - 1) * cluster.latency(ranks[0], ranks[1]))
        parts = list(packages.values())
        if len(parts) > 1:
            waits = 0.0
            for here, there in zip(parts, (*parts[1:], parts[0]), strict=True):
                for a, b in ((here[0], there[0]), (there[0], here[0])):
                    bandwidth = min(bandwidth, cluster.bandwidth(a, b) * min(len(here), len(there)))
                    waits = max(waits, cluster.latency(a, b))
            latency += (len(parts) - 1) * waits
        return latency, bandwidth


def _begins(ranks: Sequence[int], stride: int, count: int) -> list[int]:
    """Where groups of `count` begin that are `stride` apart."""
    whole = stride * count
    return [begin + within for begin in range(0, len(ranks), whole) for within in range(stride)]
