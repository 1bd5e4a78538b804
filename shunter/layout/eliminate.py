"""The cheapest choice over a graph of costs, exactly where it can be had (arXiv 2110.15032; OneFlow's
sbp_graph).

Nodes have a cost for each of their candidates, edges a matrix. A candidate that another one beats whatever
the neighbours do is dropped; a leaf is absorbed into its neighbour; a node between two becomes an edge
between them; edges side by side are added. Where none of that is left to do, two neighbours become one node
whose candidates are pairs. All of this is exact. When pairs become too many, candidates are improved one
node, and two neighbours, at a time, from given starts: then the result may not be the cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

LIMIT = 1 << 22  # entries of the largest matrix
TURNS = 20  # of moving costs before anything else
PRUNED, BLOCK = 1024, 1 << 20  # the most candidates that are compared pair by pair; numbers at a time
NEVER = 1e18  # stands for infinity, whose differences are no numbers; bytes stay far below


class Reduction:
    """Nodes and edges that are left, and how to get back to all of them."""

    def __init__(self, nodes: Sequence[np.ndarray], edges: Sequence[tuple[int, int, np.ndarray]]) -> None:
        self.nodes = {index: np.minimum(costs, NEVER) for index, costs in enumerate(nodes)}
        self.edges: dict[int, dict[int, np.ndarray]] = {index: {} for index in self.nodes}
        self._undo: list[Callable[[dict[int, int]], None]] = []
        self.count = self._next = len(nodes)
        self._changed = set(self.nodes)  # those that pruning may find something in
        self._bound, self._certain = np.inf, 0.0  # no choice of interest costs more; every choice costs this
        for a, b, costs in edges:
            if a == b:
                self.nodes[a] = self.nodes[a] + np.diagonal(costs)
            else:
                self._join(a, b, np.minimum(costs, NEVER))

    def _join(self, a: int, b: int, costs: np.ndarray) -> None:
        """Add an edge; one that is there already is added to."""
        there = self.edges[a].get(b)
        self.edges[a][b] = costs if there is None else there + costs
        self.edges[b][a] = self.edges[a][b].T
        self._changed |= {a, b}

    def _remove(self, node: int) -> dict[int, np.ndarray]:
        del self.nodes[node]
        self._changed.discard(node)
        around = self.edges.pop(node)
        self._changed |= around.keys()
        for other in around:
            del self.edges[other][node]
        return around

    def run(self, limit: int = LIMIT, bound: float = np.inf) -> bool:
        """Reduce as far as it goes; True when nothing but lone nodes is left.

        bound: the cost of a known choice: dearer ones need not be kept.
        """
        self._bound = bound * (1 + 1e-9) + 1e-6
        self._tighten(TURNS)
        while True:
            while self._changed:
                self._prune(self._changed.pop())
            if self._fold(limit):
                continue
            self._tighten(2)
            if self._changed:
                continue
            if not any(self.edges.values()):
                return True
            if not self._merge(limit):
                return False

    def _tighten(self, turns: int) -> None:
        """Move costs between nodes and their edges so that what every choice costs becomes large, and drop
        candidates that cost more than the bound besides (min-sum diffusion: each node takes what its edges
        cost at least, and shares what it has over them)."""
        if not np.isfinite(self._bound):
            return
        for turn in range(turns):
            for node, around in self.edges.items():
                if not around:
                    continue
                costs = self.nodes[node]
                for matrix in around.values():
                    least = matrix.min(axis=1)
                    costs = costs + least
                    matrix -= least[:, None]
                base = costs.min()
                self._certain += base
                costs = costs - base
                kept = np.flatnonzero(costs <= self._bound - self._certain)
                if len(kept) < len(costs):
                    self.nodes[node] = costs
                    self._keep(node, kept)
                    costs = self.nodes[node]
                if turn < turns - 1:
                    share = costs / len(around)
                    for other in around:
                        self.edges[node][other] += share[:, None]
                    costs = np.zeros_like(costs)
                self.nodes[node] = costs

    def _fold(self, limit: int) -> bool:
        done = False
        for node in sorted(self.nodes, key=lambda it: len(self.nodes[it])):
            if node not in self.nodes:
                continue
            around = self.edges[node]
            if len(around) == 1:
                self._absorb(node)
                done = True
            elif len(around) == 2:
                a, b = around
                if len(self.nodes[a]) * len(self.nodes[b]) <= limit:
                    self._bridge(node, a, b)
                    done = True
        return done

    def _absorb(self, leaf: int) -> None:
        costs = self.nodes[leaf]
        ((other, matrix),) = self._remove(leaf).items()
        every = costs[:, None] + matrix
        best = every.argmin(axis=0)
        self.nodes[other] = self.nodes[other] + every.min(axis=0)

        def undo(choice: dict[int, int]) -> None:
            choice[leaf] = int(best[choice[other]])

        self._undo.append(undo)

    def _bridge(self, node: int, a: int, b: int) -> None:
        costs = self.nodes[node]
        around = self._remove(node)
        to_a, to_b = around[a], around[b]
        least = np.full((to_a.shape[1], to_b.shape[1]), 4 * NEVER)
        for index, cost in enumerate(costs):
            np.minimum(least, cost + to_a[index][:, None] + to_b[index][None, :], out=least)
        self._join(a, b, least)

        def undo(choice: dict[int, int]) -> None:
            choice[node] = int((costs + to_a[:, choice[a]] + to_b[:, choice[b]]).argmin())

        self._undo.append(undo)

    def _merge(self, limit: int) -> bool:
        """Make one node of the two neighbours that give the smallest matrices."""
        best: tuple[int, int, int] | None = None
        for a, around in self.edges.items():
            for b in around:
                if a < b:
                    both = len(self.nodes[a]) * len(self.nodes[b])
                    others = (around.keys() | self.edges[b].keys()) - {a, b}
                    size = both * max(len(self.nodes[it]) for it in others) if others else both
                    if best is None or size < best[0]:
                        best = size, a, b
        if best is None or best[0] > limit:
            return False
        _, a, b = best
        costs = self.nodes[a][:, None] + self.edges[a][b] + self.nodes[b][None, :]
        pairs = np.argwhere(costs < NEVER)
        if not len(pairs):
            pairs = np.argwhere(np.ones_like(costs, dtype=bool))
        first, second = pairs[:, 0], pairs[:, 1]
        around_a, around_b = self._remove(a), self._remove(b)
        merged, self._next = self._next, self._next + 1
        self.nodes[merged], self.edges[merged] = costs[first, second], {}
        for around, index in ((around_a, first), (around_b, second)):
            for other, matrix in around.items():
                if other not in (a, b):
                    self._join(merged, other, matrix[index])

        def undo(choice: dict[int, int]) -> None:
            choice[a], choice[b] = (int(it) for it in pairs[choice[merged]])

        self._undo.append(undo)
        return True

    def _prune(self, node: int) -> None:
        """Drop candidates that another beats by more than any neighbours' choice could make up for."""
        costs, around = self.nodes[node], self.edges[node]
        count = len(costs)
        if count < 2 or count > PRUNED:
            return
        # loses[i, j]: by how much i can be dearer than j, whatever the neighbours choose.
        loses = costs[:, None] - costs[None, :]
        for matrix in around.values():
            rows = max(1, BLOCK // matrix.size)
            for begin in range(0, count, rows):
                piece = slice(begin, begin + rows)
                loses[piece] += (matrix[piece, None, :] - matrix[None, :, :]).max(axis=2)
        alive = np.ones(count, dtype=bool)
        for better in np.argsort(costs, kind="stable"):
            if alive[better]:
                beaten = alive & (loses[better] <= 0)
                beaten[better] = False
                alive &= ~beaten
        if alive.all():
            return
        self._keep(node, np.flatnonzero(alive))

    def _keep(self, node: int, kept: np.ndarray) -> None:
        """Drop a node's other candidates."""
        around = self.edges[node]
        self.nodes[node] = self.nodes[node][kept]
        for other, matrix in list(around.items()):
            around[other] = matrix[kept]
            self.edges[other][node] = around[other].T
        self._changed |= {node, *around}

        def undo(choice: dict[int, int]) -> None:
            choice[node] = int(kept[choice[node]])

        self._undo.append(undo)

    def finish(self) -> list[int]:
        """A candidate for each node of the beginning; what is left is improved from its cheapest
        candidates.
        """
        choice = {node: int(costs.argmin()) for node, costs in self.nodes.items()}
        improve(self.nodes, self.edges, choice)
        for undo in reversed(self._undo):
            undo(choice)
        return [choice[index] for index in range(self.count)]


def improve(
    nodes: dict[int, np.ndarray], edges: dict[int, dict[int, np.ndarray]], choice: dict[int, int]
) -> None:
    """Change one node at a time, and two neighbours together, while that makes the whole cheaper."""
    changed = True
    while changed:
        changed = False
        for node in nodes:
            costs = _around(nodes, edges, choice, node, None)
            best = int(costs.argmin())
            if costs[best] < costs[choice[node]]:
                choice[node], changed = best, True
        for a in nodes:
            for b, matrix in edges[a].items():
                if a < b:
                    both = _around(nodes, edges, choice, a, b)[:, None] + matrix
                    both = both + _around(nodes, edges, choice, b, a)[None, :]
                    i, j = (int(it) for it in np.unravel_index(both.argmin(), both.shape))
                    if both[i, j] < both[choice[a], choice[b]]:
                        choice[a], choice[b], changed = i, j, True


def _around(
    nodes: dict[int, np.ndarray],
    edges: dict[int, dict[int, np.ndarray]],
    choice: dict[int, int],
    node: int,
    without: int | None,
) -> np.ndarray:
    """The cost of each candidate of a node while the others stay."""
    costs = nodes[node]
    for other, matrix in edges[node].items():
        if other != without:
            costs = costs + matrix[:, choice[other]]
    return costs


def minimise(
    nodes: Sequence[np.ndarray],
    edges: Sequence[tuple[int, int, np.ndarray]],
    starts: Sequence[Sequence[int]] = (),
    limit: int = LIMIT,
) -> tuple[list[int], bool]:
    """A candidate for each node, and whether it is proven to be the cheapest choice. Never dearer than a
    start.
    """
    known = _improved(nodes, edges, starts)
    reduction = Reduction(nodes, edges)
    exact = reduction.run(limit, min((cost for cost, _ in known), default=np.inf))
    found = reduction.finish()
    if exact:
        return found, True
    return min([*known, *_improved(nodes, edges, [found])])[1], False


def _improved(
    nodes: Sequence[np.ndarray],
    edges: Sequence[tuple[int, int, np.ndarray]],
    starts: Sequence[Sequence[int]],
) -> list[tuple[float, list[int]]]:
    """Choices that are no dearer than these, with their costs."""
    whole, found = Reduction(nodes, edges), []
    for start in starts:
        choice = dict(enumerate(start))
        improve(whole.nodes, whole.edges, choice)
        better = [choice[index] for index in range(len(nodes))]
        found.append((total(nodes, edges, better), better))
    return found


def total(
    nodes: Sequence[np.ndarray], edges: Sequence[tuple[int, int, np.ndarray]], choice: Sequence[int]
) -> float:
    """The cost of a choice."""
    found = sum(float(costs[it]) for costs, it in zip(nodes, choice, strict=True))
    return found + sum(float(costs[choice[a], choice[b]]) for a, b, costs in edges)
