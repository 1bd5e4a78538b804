"""A cluster of single devices from matrices of latency and bandwidth, as a measurement or a study has
them."""

from __future__ import annotations

from collections.abc import Sequence

from shunter.cluster.description import Description, Link, NodeGroup, Pair
from shunter.cluster.device import DeviceKind

GROUP = "node"


def from_matrices(
    name: str, device: DeviceKind, bandwidth: Sequence[Sequence[float]], latency: Sequence[Sequence[float]]
) -> Description:
    """One device in each node. bandwidth[a][b]: bytes a second from node a to b; latency: seconds, likewise.
    The diagonals mean nothing. Equal links share a name."""
    links: dict[str, Link] = {}
    known: dict[tuple[float, float], str] = {}
    count = len(bandwidth)

    def link(a: int, b: int) -> str:
        key = latency[a][b], bandwidth[a][b]
        if key not in known:
            known[key] = f"link{len(known)}"
            links[known[key]] = Link(latency=key[0], bandwidth=key[1])
        return known[key]

    pairs = []
    for a in range(count):
        for b in range(a + 1, count):
            there, back = link(a, b), link(b, a)
            ends = [f"{GROUP}.{a}", f"{GROUP}.{b}"]
            pairs.append(Pair(ends=ends, link=there, back=None if there == back else back))
    return Description(
        name=name,
        devices={"device": device},
        links=links,
        nodes={GROUP: NodeGroup(count=count, device="device", devices=1)},
        pairs=pairs,
    )
