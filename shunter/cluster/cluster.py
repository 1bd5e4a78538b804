"""A cluster to ask: ranks are its devices in order, and each pair of them has a link in each direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

from shunter.cluster.description import Description, Link, NodeGroup
from shunter.cluster.device import DeviceKind
from shunter.cluster.sound import check
from shunter.config.errors import ShunterError
from shunter.config.yaml import Source

SELF = Link(latency=0.0, bandwidth=1e300, type="self")


@dataclass(frozen=True)
class Device:
    """rank: its number in the cluster. node: number of its node. place: its number in the node, as the file
    has it. name: `group.0/3`. kind: name of its kind, spec: the kind itself."""

    rank: int
    node: int
    place: int
    name: str
    kind: str
    spec: DeviceKind


@dataclass(frozen=True)
class Node:
    """name: `group.0`. group: name of its group. ranks: of its devices."""

    name: str
    group: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Cluster:
    """Devices of a description, all of them or some. Rank r is `devices[r]`.

    path: of the file, for messages.
    """

    description: Description
    devices: tuple[Device, ...]
    nodes: tuple[Node, ...]
    path: str = ""
    _pairs: Mapping[tuple[str, str], Link] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, description: Description, source: Source | None = None) -> Cluster:
        """All devices, group by group, node by node.

        source: of the description, for messages. Raises ShunterError where a name means nothing, and
        where two devices have no link.
        """
        check(description, source)
        devices: list[Device] = []
        nodes: list[Node] = []
        for group, given in description.nodes.items():
            spec = description.devices[given.device]
            for number in range(given.count):
                first, name = len(devices), f"{group}.{number}"
                devices += [
                    Device(first + place, len(nodes), place, f"{name}/{place}", given.device, spec)
                    for place in range(given.devices)
                ]
                nodes.append(Node(name, group, tuple(range(first, len(devices)))))
        found = cls(
            description, tuple(devices), tuple(nodes), source.path if source else "", _directed(description)
        )
        found._complete()
        return found

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def world(self) -> int:
        """Devices in all."""
        return len(self.devices)

    @property
    def homogeneous(self) -> bool:
        """Whether all devices are of one kind."""
        return len({device.kind for device in self.devices}) == 1

    @property
    def price_per_hour(self) -> float | None:
        """Of all nodes that are used; none where one has no price."""
        prices = [self.group(node.ranks[0]).price_per_hour for node in self.nodes]
        return None if any(price is None for price in prices) else math.fsum(p for p in prices if p)

    def device(self, rank: int) -> Device:
        return self.devices[rank]

    def node(self, rank: int) -> Node:
        """The node of a rank."""
        return self.nodes[self.devices[rank].node]

    def group(self, rank: int) -> NodeGroup:
        """The group of nodes that a rank's node is of, as described."""
        return self.description.nodes[self.node(rank).group]

    def groups(self) -> dict[str, tuple[int, ...]]:
        """Ranks by name of the group of nodes."""
        found: dict[str, tuple[int, ...]] = {}
        for node in self.nodes:
            found[node.group] = found.get(node.group, ()) + node.ranks
        return found

    def link(self, source: int, target: int) -> Link:
        """The link from one rank to another; of a rank to itself: no latency, no limit."""
        if source == target:
            return SELF
        found = self._between(source, target)
        assert found is not None  # `_complete` has seen to it
        return found

    def latency(self, source: int, target: int) -> float:
        """Seconds until an empty message has arrived."""
        return self.link(source, target).latency

    def bandwidth(self, source: int, target: int, flows: int = 1) -> float:
        """Bytes a second from one rank to another.

        flows: messages that leave the source's node for others at once, which share its NICs.
        """
        link = self.link(source, target)
        if flows <= 1 or self.devices[source].node == self.devices[target].node:
            return link.bandwidth
        nics = min(self.group(source).nics, self.group(target).nics)
        return link.bandwidth * min(1.0, nics / flows)

    def level(self, source: int, target: int) -> str:
        """`self`, `package`, `node`, or `nodes`: how far two ranks are apart."""
        if source == target:
            return "self"
        a, b = self.devices[source], self.devices[target]
        if a.node != b.node:
            return "nodes"
        package = self.group(source).package
        return "package" if package and a.place // package.size == b.place // package.size else "node"

    def seconds(self, source: int, target: int, size: float, flows: int = 1) -> float:
        """Of a message of `size` bytes: latency + size / bandwidth."""
        return self.latency(source, target) + size / self.bandwidth(source, target, flows)

    def slowest(self, ranks: Sequence[int]) -> Link:
        """The link with least bandwidth in the ring of these ranks, both ways; ties: most latency."""
        ring = [
            self.link(*pair)
            for a, b in zip(ranks, (*ranks[1:], ranks[0]), strict=True)
            for pair in ((a, b), (b, a))
        ]
        return min(ring, key=lambda link: (link.bandwidth, -link.latency))

    def nics(self, ranks: Iterable[int]) -> set[str]:
        """Types of the links by which the nodes of these ranks leave: more than one cannot talk natively."""
        found = set()
        for rank in ranks:
            group = self.group(rank)
            found.add(self.description.links[group.between].type if group.between else "")
        return found

    def subcluster(self, ranks: Sequence[int]) -> Cluster:
        """The cluster of some of its devices, renumbered in the order given. Links stay what they are."""
        chosen, numbers, nodes = list[Device](), dict[int, int](), list[Node]()
        for rank in ranks:
            old = self.devices[rank]
            if old.node not in numbers:
                numbers[old.node] = len(nodes)
                nodes.append(Node(self.nodes[old.node].name, self.nodes[old.node].group, ()))
            number = numbers[old.node]
            nodes[number] = Node(nodes[number].name, nodes[number].group, (*nodes[number].ranks, len(chosen)))
            chosen.append(Device(len(chosen), number, old.place, old.name, old.kind, old.spec))
        if len({device.name for device in chosen}) < len(chosen) or not chosen:
            raise ValueError(f"{list(ranks)} are no different ranks")
        return Cluster(self.description, tuple(chosen), tuple(nodes), self.path, self._pairs)

    def varied(self, description: Description) -> Cluster:
        """The same devices where links and kinds of devices have other numbers."""
        devices = tuple(replace(each, spec=description.devices[each.kind]) for each in self.devices)
        return Cluster(description, devices, self.nodes, self.path, _directed(description))

    def _between(self, source: int, target: int) -> Link | None:
        """The finest that is said: the pair of devices, package and node, the pair of nodes, of groups."""
        a, b = self.devices[source], self.devices[target]
        if self._fine and (found := self._pairs.get((a.name, b.name))):
            return found
        links = self.description.links
        node, other = self.nodes[a.node], self.nodes[b.node]
        group = self.description.nodes[node.group]
        if a.node == b.node:
            package = group.package
            if package and a.place // package.size == b.place // package.size:
                return links[package.link]
            return links[group.inside] if group.inside else None
        if self._pairs:
            found = self._pairs.get((node.name, other.name)) or self._pairs.get((node.group, other.group))
            if found:
                return found
        name = group.between if node.group == other.group else self.description.between
        return links[name] if name else None

    @cached_property
    def _fine(self) -> bool:
        """Whether pairs of devices have links of their own."""
        return any("/" in source for source, _ in self._pairs)

    def _complete(self) -> None:
        """Raise ShunterError for the first two devices without a link."""
        for a, b in self._representatives():
            if self._between(a, b) is None:
                first, second = self.devices[a], self.devices[b]
                group = self.nodes[first.node].group
                if first.node == second.node:
                    mend = f"Add `inside: LINK` to nodes.{group}."
                elif group == self.nodes[second.node].group:
                    mend = f"Add `between: LINK` to nodes.{group}."
                else:
                    mend = "Add `between: LINK` to the top of the file, or the two to `pairs`."
                raise ShunterError(
                    f"{first.name} and {second.name} have no link", where=self.path or self.name, mend=mend
                )

    def _representatives(self) -> Iterator[tuple[int, int]]:
        """Pairs of ranks, of each sort at least one: all within one node of a group; of nodes, all where
        pairs are described, else the first two of each group and of each two groups."""
        firsts: dict[str, list[Node]] = {}
        for node in self.nodes:
            firsts.setdefault(node.group, []).append(node)
        for nodes in firsts.values():
            for node in nodes if self._fine else nodes[:1]:
                yield from combinations(node.ranks, 2)
        limit = None if self._pairs else 2
        few = [node for nodes in firsts.values() for node in nodes[:limit]]
        for one, other in combinations(few, 2):
            if self._fine:
                yield from ((a, b) for a in one.ranks for b in other.ranks)
            else:
                yield one.ranks[0], other.ranks[0]


def _directed(description: Description) -> dict[tuple[str, str], Link]:
    """(from, to) -> link, of devices, nodes and groups; names tell which."""
    found = {}
    for pair in description.pairs:
        (a, b), link = pair.ends, description.links[pair.link]
        found[a, b] = link
        found[b, a] = description.links[pair.back] if pair.back else link
    return found
