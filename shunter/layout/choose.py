"""Layouts for all operators of a graph: one after another, or the cheapest of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.layout.conversion import moved_elements
from shunter.layout.eliminate import LIMIT, minimise
from shunter.layout.graph import Edge, Graph
from shunter.layout.placement import Placements, Split
from shunter.layout.problem import Prices, Problem, Rule, data_only, taken, tensor_only
from shunter.layout.signatures import Signature

# Of several axes, what counts first: all axes of an input as they are, most axes, or the bytes alone.
Policy = Literal["full", "most", "cost"]


@dataclass(frozen=True)
class Choice:
    """A signature for each operator of a graph, in its order.

    cost: bytes moved, plus the prices of repeated work and tie-breaks. exact: no choice is cheaper (proven).
    """

    graph: Graph
    hierarchy: tuple[int, ...]
    signatures: tuple[Signature, ...]
    cost: float
    exact: bool

    @property
    def bytes(self) -> int:
        """What all conversions move, of all devices together."""
        return sum(moved for _, _, _, moved in self.conversions())

    def conversions(self) -> list[tuple[Edge, Placements, Placements, int]]:
        """Each edge with the layout that is made, the one that is taken, and the bytes moved; 0 where they
        are equal or where each device has what it needs."""
        found = []
        for edge in self.graph.edges():
            source = self.signatures[edge.producer].outputs[edge.output]
            target = taken(self.signatures[edge.consumer], edge)
            it = self.graph.values[edge.value]
            moved = it.itemsize * moved_elements(it.shape, source, target, self.hierarchy)
            found.append((edge, source, target, moved))
        return found

    def layout(self, value: str) -> Placements:
        """How a tensor lies when it is made."""
        for operator, signature in zip(self.graph.operators, self.signatures, strict=True):
            if value in operator.outputs:
                return signature.outputs[operator.outputs.index(value)]
        raise ShunterError(f"no operator makes {value!r}")


def _chosen(problem: Problem, choice: Sequence[int], exact: bool) -> Choice:
    return by_indices(problem, choice, problem.total(choice), exact)


def in_order(problem: Problem, policy: Policy = "most") -> Choice:
    """Each operator by itself, in topological order: OneFlow's default.

    An input that lies already as a signature wants it counts -10; ties are broken by the cost of converting
    the others. Sources are cut along their first dim if hints do not say otherwise.
    """
    return _chosen(problem, _in_order(problem, policy), exact=False)


def _in_order(problem: Problem, policy: Policy) -> list[int]:
    arriving: dict[int, list[Edge]] = {}
    for edge in problem.edges:
        if edge.input < 0:
            continue  # not known yet
        arriving.setdefault(edge.consumer, []).append(edge)
    choice: list[int] = []
    for index, candidates in enumerate(problem.candidates):
        ranks: list[tuple[float, float, int]] = []
        for signature in candidates:
            matches, cost = 0.0, float(problem.nodes[index][len(ranks)])
            for edge in arriving.get(index, []):
                made = problem.candidates[edge.producer][choice[edge.producer]].outputs[edge.output]
                wanted = signature.inputs[edge.input]
                same = [a == b for a, b in zip(made, wanted, strict=True)]
                matches += {"full": float(all(same)), "most": sum(same) / len(same), "cost": 0.0}[policy]
                cost += problem.cost(edge.value, made, wanted)
            first = all(it == Split(0) for placements in signature.outputs for it in placements)
            prefers = 0 if arriving.get(index) or first else 1
            ranks.append((-10 * matches + prefers, cost, len(ranks)))
        choice.append(min(ranks)[2])
    return choice


def cheapest(problem: Problem, *, starts: Sequence[Choice] = (), limit: int | None = None) -> Choice:
    """The least of repeated work and bytes over the whole graph.

    `Choice.exact` says whether that is proven; see `shunter.layout.eliminate`. starts: choices of the same
    graph that the result is never dearer than, where they are candidates here. limit: entries of the largest
    matrix; over several axes it is smaller by default, because there the proof is mostly out of reach.
    """
    edges = [
        (edge.producer, edge.consumer, matrix)
        for edge, matrix in zip(problem.edges, problem.matrices, strict=True)
    ]
    limit = limit or (LIMIT if len(problem.hierarchy) == 1 else LIMIT >> 4)
    known = [_in_order(problem, "most"), *(found for it in starts if (found := indices(problem, it)))]
    choice, exact = minimise(problem.nodes, edges, known, limit)
    return _chosen(problem, choice, exact)


def by_indices(problem: Problem, indices: Sequence[int], cost: float, exact: bool) -> Choice:
    """A choice from the positions of its signatures among the candidates, as `indices` gives them."""
    picked = tuple(those[it] for those, it in zip(problem.candidates, indices, strict=True))
    return Choice(problem.graph, problem.hierarchy, picked, cost, exact)


def indices(problem: Problem, choice: Choice) -> list[int] | None:
    """Where a choice's signatures stand among the candidates, to be kept or sent; None if one does not."""
    found = []
    for candidates, signature in zip(problem.candidates, choice.signatures, strict=True):
        if signature not in candidates:
            return None
        found.append(candidates.index(signature))
    return found


def choose(
    graph: Graph,
    hierarchy: Sequence[int],
    prices: Prices | None = None,
    *,
    rules: Sequence[Rule] = (),
    hints: Mapping[str, Placements] | None = None,
) -> Choice:
    """The cheapest layouts; never dearer than rows cut over all axes, or weights cut over all axes."""
    problem = Problem(graph, hierarchy, prices, rules=rules, hints=hints)
    starts = []
    if not rules:
        for rule in (data_only, tensor_only):
            try:
                starts.append(
                    cheapest(Problem(graph, hierarchy, prices, rules=(rule,) * len(hierarchy), hints=hints))
                )
            except ShunterError:  # too few rows, or a hint that does not allow it
                continue
    return cheapest(problem, starts=starts)
