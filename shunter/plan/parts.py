"""Parts of a cluster, and the one on which a step costs or takes least. Imports without torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod

from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.search import Found, Objective, search_all
from shunter.plan.space import Fixed, divisors
from shunter.plan.terrain import Terrain

ALL_COUNTS = 16  # nodes of which every smaller number is tried; of more, divisors
MOST = 48  # parts of a cluster with several groups of nodes
BLOCKS = (2, 4, 8)
FEW = 4  # parts that are searched in full at once
FINALISTS = 6  # of each part, before the cheapest one is searched in full


def best_part(
    question: Question, fixed: Fixed, room: float | None, objective: Objective, top: int, finalists: int
) -> Found:
    """Of some parts of the cluster the one whose best step costs least (`cost`), or takes least, with its
    plans.

    A node is paid as a whole, so parts by cost are whole nodes. Raises ShunterError where nodes have no
    price, and where no part has a layout what the search of the whole says.
    """
    fabric = question.fabric
    if objective == "cost" and fabric.price_per_hour is None:
        raise ShunterError(
            f"the cluster {fabric.name} has no price",
            mend="Give its nodes a price_per_hour in the cluster's file, or ask for the least time.",
        )
    begin = time.perf_counter()
    tried = list(parts(fabric)) if objective == "cost" else [*trimmed(fabric), fabric]
    if len(tried) == 1:
        return search_all(question, fixed, room, objective, top, finalists)
    # Many parts are looked at with few finalists each, and the best of them once more; few parts in full.
    by: Objective = "time" if objective == "cost" else objective
    few = len(tried) <= FEW
    looks = finalists if few else min(FINALISTS, finalists)
    best: tuple[float, Found] | None = None
    problem: ShunterError | None = None
    considered = rejected = 0
    for part in tried:
        try:
            found = search_all(replace(question, fabric=part), fixed, room, by, top, looks)
        except ShunterError as error:
            problem = error
            continue
        considered, rejected = considered + found.considered, rejected + found.rejected
        worth = _worth(found, objective)
        if best is None or worth < best[0]:
            best = worth, found
    if best is None:
        assert problem is not None
        raise problem
    found = best[1] if few else search_all(best[1].question, fixed, room, by, top, finalists)
    spent = time.perf_counter() - begin
    return replace(found, considered=considered, rejected=rejected, seconds=spent, objective=objective)


def _worth(found: Found, objective: Objective) -> float:
    best = found.plans[0].prediction
    if objective == "cost":
        return best.seconds * (found.question.fabric.price_per_hour or 0.0)
    return best.fullest if objective == "memory" else best.seconds


def trimmed(fabric: Fabric) -> Iterator[Fabric]:
    """Parts in which each node's devices are a multiple of 2, 4 or 8, where all of them are not: wider tensor
    groups, and degrees that divide."""
    if fabric.terrain is None:
        return
    cluster, seen = fabric.terrain.cluster, {fabric.world}
    for block in BLOCKS:
        ranks = [rank for node in cluster.nodes for rank in node.ranks[: len(node.ranks) // block * block]]
        if block > fabric.block and ranks and len(ranks) not in seen:
            seen.add(len(ranks))
            part = cluster.subcluster(ranks)
            yield replace(Fabric.of(part), terrain=Terrain(part))


def parts(fabric: Fabric) -> Iterator[Fabric]:
    """The cluster's first nodes, of each number of them; where nodes differ, of each number of each group:
    where links of pairs differ, those of a group that have the best links to the others that are chosen."""
    if fabric.terrain is None:
        yield from _even(fabric)
        return
    cluster = fabric.terrain.cluster
    groups: dict[str, list[tuple[int, ...]]] = {}
    for node in cluster.nodes:
        groups.setdefault(node.group, []).append(node.ranks)
    counts = [list(range(len(nodes) + 1)) for nodes in groups.values()]
    if prod(map(len, counts)) > MOST:
        counts = [sorted({0, 1, top // 4, top // 2, top}) for top in map(len, groups.values())]
    near = Near(cluster) if cluster.description.pairs else None
    for chosen in product(*counts):
        asked = dict(zip(groups, chosen, strict=True))
        nodes = [node for name, count in asked.items() for node in groups[name][:count]]
        ranks = sorted(rank for node in nodes for rank in node)
        if near is not None and ranks:
            ranks = near.ranks(asked)
        if ranks:
            part = cluster.subcluster(ranks)
            # Equal nodes keep their names: the plan says which devices are used.
            yield replace(Fabric.of(part), terrain=Terrain(part))


class Near:
    """Of equal nodes, those that are close to each other: a cluster whose pairs of nodes have links of their
    own. Nodes cost the same, so that what is left out is the node whose messages to the rest take longest."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        firsts = [node.ranks[0] for node in cluster.nodes]
        self.slow = [
            [0.0 if a == b else 1 / cluster.bandwidth(a, b) + 1 / cluster.bandwidth(b, a) for b in firsts]
            for a in firsts
        ]

    def ranks(self, counts: Mapping[str, int]) -> list[int]:
        """So many nodes of each group: one after the other is left out of those that are too many, of equal
        ones the last."""
        nodes = self.cluster.nodes
        left = [n for n, node in enumerate(nodes) if counts[node.group]]
        while True:
            there = Counter(nodes[n].group for n in left)
            open_ = [n for n in left if there[nodes[n].group] > counts[nodes[n].group]]
            if not open_:
                return [rank for n in left for rank in nodes[n].ranks]
            left.remove(max(open_, key=lambda n: (round(sum(self.slow[n][o] for o in left), 18), n)))


def _even(fabric: Fabric) -> Iterator[Fabric]:
    nodes = fabric.world // fabric.block
    assert fabric.price_per_hour is not None
    for count in range(1, nodes + 1) if nodes <= ALL_COUNTS else divisors(nodes):
        yield replace(
            fabric,
            world=count * fabric.block,
            kinds=fabric.kinds[:count],
            price_per_hour=fabric.price_per_hour * count / nodes,
        )
