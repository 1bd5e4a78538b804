"""Graphs of operators, forward and backward, as data: what a layout is chosen for.

A graph is written down operator by operator in the order of execution. `Steps.backward` adds the operators
that make gradients, so that each of them may have a layout of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from shunter.config.errors import ShunterError
from shunter.layout.signatures import Expression, Operator


@dataclass(frozen=True)
class Value:
    """A tensor of the whole graph. word: letters of its dims, as its maker has them. itemsize: bytes of an
    element.
    """

    name: str
    shape: tuple[int, ...]
    word: str
    itemsize: int = 4

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Edge:
    """A tensor on its way from the operator that makes it to one that takes it, by their positions.

    input: which of the consumer's; -1 where the consumer is a source whose next value this tensor is.
    """

    value: str
    producer: int
    output: int
    consumer: int
    input: int


@dataclass
class Graph:
    """Operators in an order in which they can run. itemsize: bytes of an element of new tensors.

    carried: tensor -> the source whose next value it is (a new weight; what leaves one of many equal blocks).
    It has to lie as the source did.
    """

    itemsize: int = 4
    values: dict[str, Value] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    carried: dict[str, str] = field(default_factory=dict)
    _makers: dict[str, tuple[int, int]] = field(default_factory=dict)
    _gradients: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Mapping[str, str] | Sequence[str],
        expression: Expression,
        *,
        sizes: Mapping[str, int] | None = None,
        work: float = 0.0,
        facts: Mapping[str, float] | None = None,
        name: str = "",
        itemsize: int | None = None,
    ) -> tuple[str, ...]:
        """Append an operator; returns the names of its outputs.

        sizes: of letters that no input has. Raises ShunterError where shapes contradict each other, or a
        tensor is not there or is made twice.
        """
        outputs = tuple(outputs)
        name = name or (outputs[0] if outputs else f"{kind} {', '.join(inputs)}")
        known = dict(sizes or {})
        for value, word in zip(inputs, expression.inputs, strict=True):
            if value not in self.values:
                raise ShunterError(f"{kind} {name!r} takes {value!r}, which no operator made", where=name)
            shape = self.values[value].shape
            if len(shape) != len(word):
                raise ShunterError(
                    f"{kind} {name!r} takes {value!r} as {word!r}, but its shape is {list(shape)}"
                )
            for letter, length in zip(word, shape, strict=True):
                if known.setdefault(letter, length) != length:
                    raise ShunterError(
                        f"{kind} {name!r}: {letter} is {length} in {value!r} and {known[letter]} elsewhere"
                    )
        for whole, parts in expression.joined:
            if prod(known[part] for part in parts) != known.setdefault(whole, prod(known[p] for p in parts)):
                raise ShunterError(f"{kind} {name!r}: {known[whole]} is not {' x '.join(parts)}")
        operator = Operator(name, kind, tuple(inputs), outputs, expression, known, work, dict(facts or {}))
        for index, (value, word) in enumerate(zip(outputs, expression.outputs, strict=True)):
            if value in self.values:
                raise ShunterError(f"{kind} {name!r} makes {value!r} a second time", where=name)
            self.values[value] = Value(value, operator.shape(word), word, itemsize or self.itemsize)
            self._makers[value] = (len(self.operators), index)
        self.operators.append(operator)
        return outputs

    def edges(self) -> list[Edge]:
        """One for each input of each operator, then one for each tensor that is carried on."""
        inside = [
            Edge(value, *self._makers[value], consumer, index)
            for consumer, operator in enumerate(self.operators)
            for index, value in enumerate(operator.inputs)
        ]
        return inside + [
            Edge(value, *self._makers[value], self._makers[source][0], -1)
            for value, source in self.carried.items()
        ]

    def carry(self, value: str, source: str) -> None:
        """A tensor is the next value of a source. Raises ShunterError where their shapes differ."""
        if self.values[value].shape != self.values[source].shape:
            shapes = [list(self.values[it].shape) for it in (value, source)]
            raise ShunterError(f"{value!r} of {shapes[0]} is carried on as {source!r} of {shapes[1]}")
        self.carried[value] = source

    def users(self, value: str) -> list[Operator]:
        """The operators that take a tensor."""
        return [operator for operator in self.operators if value in operator.inputs]

    def operator(self, name: str) -> Operator:
        """By its name."""
        return next(operator for operator in self.operators if operator.name == name)

    # Gradients

    def contribute(self, value: str, gradient: str) -> None:
        """Note a part of a tensor's gradient; all its users contribute one."""
        self._gradients.setdefault(value, []).append(gradient)

    def gradient(self, value: str) -> str | None:
        """The gradient of a tensor, its contributions added; None where nothing depends on it."""
        found = self._gradients.get(value, [])
        while len(found) > 1:
            # The next two by a new operator; each tensor has a name of its own.
            left, right, *others = found
            letters = self.values[left].word
            joint = Expression((letters, letters), (letters,), letters, linear=(frozenset({0, 1}),))
            name = f"d {value}" + (f" ({len(others)} more)" if others else "")
            self.add("add", (left, right), (name,), joint)
            found = self._gradients[value] = [*others, name]
        return found[0] if found else None
