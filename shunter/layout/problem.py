"""The choice of layouts as numbers: candidates and their costs for operators, conversions for edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shunter.config.errors import ShunterError
from shunter.layout.conversion import ToPartial, moved_elements, surcharge
from shunter.layout.graph import Edge, Graph
from shunter.layout.placement import Broadcast, Placements
from shunter.layout.signatures import Operator, Signature, repeated_work, signatures

# May an operator cut this letter ("" for none) along one axis?
Rule = Callable[[Operator, str], bool]


@dataclass(frozen=True)
class Prices:
    """What a choice minimises, in bytes.

    flop:       of one floating-point operation that a device repeats because another does it too. At 1, the
                default, no product is done twice to save messages. A machine's own price is the bytes that a
                link carries in the time of one operation, far below 1.
    to_partial: of making a tensor partial; see `shunter.layout.conversion`.
    """

    flop: float = 1.0
    to_partial: ToPartial = "dear"


def anything(operator: Operator, letter: str) -> bool:
    """Every legal signature."""
    return True


def data_only(operator: Operator, letter: str) -> bool:
    """Rows are cut wherever there are rows; weights are copied."""
    return letter == ("b" if "b" in operator.sizes else "")


def tensor_only(operator: Operator, letter: str) -> bool:
    """No rows are cut. Tokens are cut only between products, where nothing mixes them with a weight."""
    if letter == "b":
        return False
    return letter != "t" or not operator.kind.startswith(("linear", "attention", "embedding"))


def taken(signature: Signature, edge: Edge) -> Placements:
    """How the consumer of an edge takes it; a source takes its next value as it gives it."""
    return signature.outputs[0] if edge.input < 0 else signature.inputs[edge.input]


class Problem:
    """A graph over a hierarchy of devices.

    rules: one an axis, which signatures are looked at. hints: operator or tensor -> placements that it has to
    have.
    Raises ShunterError for an operator that is left without a signature.
    """

    def __init__(
        self,
        graph: Graph,
        hierarchy: Sequence[int],
        prices: Prices | None = None,
        *,
        rules: Sequence[Rule] = (),
        hints: Mapping[str, Placements] | None = None,
    ) -> None:
        self.graph, self.hierarchy, self.prices = graph, tuple(hierarchy), prices or Prices()
        self.hints = dict(hints or {})
        if unknown := self.hints.keys() - graph.values.keys():
            raise ShunterError(f"hints name {sorted(unknown)}, which are no tensors of the graph")
        rules = rules or (anything,) * len(self.hierarchy)
        self.candidates = [self._candidates(operator, rules) for operator in graph.operators]
        self.edges = graph.edges()

    def _candidates(self, operator: Operator, rules: Sequence[Rule]) -> list[Signature]:
        legal = signatures(operator, self.hierarchy)
        found = [it for it in legal if all(rule(operator, c) for rule, c in zip(rules, it.cut, strict=True))]
        found = [
            it
            for it in found
            if all(
                self.hints.get(name, own) == own
                for name, own in zip(operator.outputs, it.outputs, strict=True)
            )
        ]
        if not found:
            wanted = ", ".join(name for name in operator.outputs if name in self.hints)
            raise ShunterError(
                f"no signature of {operator.kind} {operator.name!r} is left over {self.hierarchy}; its dims: "
                + ", ".join(f"{letter}={length}" for letter, length in operator.sizes.items())
                + (f"; hints fix {wanted}" if wanted else ""),
                mend="Use fewer devices on an axis, or other hints.",
            )
        return found

    @cached_property
    def nodes(self) -> list[np.ndarray]:
        """For each operator, the price of the work that each candidate repeats."""
        return [
            np.array(
                [self.prices.flop * one.work * (repeated_work(it, self.hierarchy) - 1) for it in candidates]
            )
            for one, candidates in zip(self.graph.operators, self.candidates, strict=True)
        ]

    @cached_property
    def matrices(self) -> list[np.ndarray]:
        """For each edge, the cost of [producer's candidate, consumer's candidate]."""
        return [self._matrix(edge) for edge in self.edges]

    def _matrix(self, edge: Edge) -> np.ndarray:
        sources = [it.outputs[edge.output] for it in self.candidates[edge.producer]]
        targets = [taken(it, edge) for it in self.candidates[edge.consumer]]
        rows, columns = list(dict.fromkeys(sources)), list(dict.fromkeys(targets))
        costs = np.array([[self.cost(edge.value, a, b) for b in columns] for a in rows])
        found: np.ndarray = costs[
            np.ix_([rows.index(it) for it in sources], [columns.index(it) for it in targets])
        ]
        return found

    def bytes(self, value: str, source: Placements, target: Placements) -> int:
        """What a conversion of one tensor moves, exactly."""
        it = self.graph.values[value]
        return it.itemsize * moved_elements(it.shape, source, target, self.hierarchy)

    def cost(self, value: str, source: Placements, target: Placements) -> float:
        """Bytes, and what the choice adds (`surcharge`)."""
        if source == target:
            return 0.0
        size = self.graph.values[value].bytes
        try:
            moved = self.bytes(value, source, target)
        except ShunterError:  # one reduction to another
            return float("inf")
        return moved + surcharge(source, target, size, self.hierarchy, self.prices.to_partial)

    def total(self, choice: Sequence[int]) -> float:
        """The cost of a candidate for each operator."""
        nodes = sum(float(costs[it]) for costs, it in zip(self.nodes, choice, strict=True))
        edges = sum(
            float(matrix[choice[edge.producer], choice[edge.consumer]])
            for edge, matrix in zip(self.edges, self.matrices, strict=True)
        )
        return nodes + edges

    def whole(self) -> Placements:
        """Copies everywhere."""
        return (Broadcast(),) * len(self.hierarchy)
