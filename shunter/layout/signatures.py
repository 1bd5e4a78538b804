"""Which layouts an operator can work with, deduced from an index expression (arXiv 2110.15032, table 1).

An operator names the dims of its tensors by letters, as einsum does: a linear layer is "bti,oi->bto". Cutting
a letter cuts every tensor that has it; a tensor that lacks it is copied. Where all inputs of an output have
the letter and the output lacks it, the devices' outputs are parts to be added (or a maximum). An operator
that is linear in some inputs passes parts of a sum on. Letters inside which an operator looks further than
one index (the width of a norm, the keys of an attention) are not free: they are not cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod

from shunter.config.errors import ShunterError
from shunter.layout.placement import (
    Broadcast,
    Partial,
    Placement,
    Placements,
    Reduction,
    Split,
    fits,
    pieces,
    told,
)


@dataclass(frozen=True)
class Expression:
    """The dims of an operator's tensors, one word of letters a tensor.

    free:    letters that may be cut.
    terms:   for each output, the groups of inputs that it is the sum of; empty: one group of all inputs.
    linear:  groups of inputs such that the outputs are linear in those of a group taken together.
    reduces: what adds up an output that lacks a letter.
    keeps:   reductions that a linear group passes on: most sums alone, a transpose all.
    joined:  letters that stand for several side by side, such as ("n", "hd"): n runs over d inside h. Cutting
             h cuts n, where no cut falls inside an h.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: str
    terms: tuple[tuple[tuple[int, ...], ...], ...] = ()
    linear: tuple[frozenset[int], ...] = ()
    reduces: Reduction = "sum"
    keeps: tuple[Reduction, ...] = ("sum",)
    joined: tuple[tuple[str, str], ...] = ()

    def dim(self, letter: str, word: str) -> int | None:
        """Which dim of a tensor with these letters a letter cuts; None where it cuts none."""
        for whole, parts in self.joined:
            if parts[0] == letter and whole in word:
                return word.index(whole)
        return word.index(letter) if letter in word else None

    def groups(self, output: int) -> tuple[tuple[int, ...], ...]:
        """The groups of inputs that an output is the sum of."""
        return self.terms[output] if self.terms else (tuple(range(len(self.inputs))),)


@dataclass(frozen=True, slots=True)
class Signature:
    """How inputs have to lie and how outputs then lie; one placement a tensor and axis.

    cut: for each axis the letter that is cut, "" where none is.
    """

    inputs: tuple[Placements, ...]
    outputs: tuple[Placements, ...]
    cut: tuple[str, ...]

    def __str__(self) -> str:
        sides = (" ".join(f"[{told(it)}]" for it in side) for side in (self.inputs, self.outputs))
        return " -> ".join(sides)


@dataclass(frozen=True)
class Operator:
    """One operator of a graph. inputs, outputs: names of tensors.

    kind:  what computes it. work: floating-point operations of the whole. sizes: letter -> length.
    facts: what the computation needs besides (a width of a head, whether attention is causal).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    expression: Expression
    sizes: Mapping[str, int] = field(hash=False)
    work: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict, hash=False)

    def shape(self, word: str) -> tuple[int, ...]:
        """Of a tensor with these letters."""
        return tuple(self.sizes[letter] for letter in word)


@lru_cache(maxsize=4096)
def deduce(expression: Expression) -> tuple[Signature, ...]:
    """All signatures along one axis: each free letter cut, parts of sums passed on, everything copied."""
    found = []
    for letter in expression.free:
        outputs: list[Placement] = []
        for index, word in enumerate(expression.outputs):
            groups = expression.groups(index)
            dims = [expression.dim(letter, it) for it in expression.inputs]
            seen = {any(dims[it] is not None for it in group) for group in groups}
            dim = expression.dim(letter, word)
            if dim is not None:
                outputs.append(Split(dim))
            elif seen == {True}:
                outputs.append(Partial(expression.reduces))
            elif seen == {False}:
                outputs.append(Broadcast())
            else:  # a sum of parts and of a whole
                break
        if len(outputs) == len(expression.outputs):
            inputs = tuple((_cut(expression, letter, word),) for word in expression.inputs)
            found.append(Signature(inputs, tuple((it,) for it in outputs), (letter,)))
    for group, op in product(expression.linear, expression.keeps):
        passed = _passed_on(expression, group, op)
        if passed is not None:
            inputs = tuple(
                (Partial(op) if index in group else Broadcast(),) for index in range(len(expression.inputs))
            )
            found.append(Signature(inputs, passed, ("",)))
    whole = (Broadcast(),)
    found.append(Signature((whole,) * len(expression.inputs), (whole,) * len(expression.outputs), ("",)))
    return tuple(dict.fromkeys(found))


def _cut(expression: Expression, letter: str, word: str) -> Placement:
    dim = expression.dim(letter, word)
    return Broadcast() if dim is None else Split(dim)


def _passed_on(expression: Expression, group: frozenset[int], op: Reduction) -> tuple[Placements, ...] | None:
    outputs: list[Placements] = []
    for index in range(len(expression.outputs)):
        hits = {sum(it in group for it in inputs) for inputs in expression.groups(index)}
        if hits == {0}:
            outputs.append((Broadcast(),))
        elif 0 in hits:
            return None
        else:
            outputs.append((Partial(op),))
    return tuple(outputs)


def signatures(operator: Operator, hierarchy: Sequence[int]) -> list[Signature]:
    """All signatures over the axes of a hierarchy whose parts leave no device empty."""
    found: list[Signature] = []
    shapes = [operator.shape(word) for word in (*operator.expression.inputs, *operator.expression.outputs)]
    for chosen in product(deduce(operator.expression), repeat=len(hierarchy)):
        sides: list[tuple[Placements, ...]] = []
        if not _whole_parts(operator, [one.cut[0] for one in chosen], hierarchy):
            continue
        for side, names in (("inputs", operator.inputs), ("outputs", operator.outputs)):
            sides.append(
                tuple(tuple(getattr(one, side)[index][0] for one in chosen) for index in range(len(names)))
            )
        if all(fits(shape, it, hierarchy) for shape, it in zip(shapes, sides[0] + sides[1], strict=True)):
            found.append(Signature(sides[0], sides[1], tuple(one.cut[0] for one in chosen)))
    return found


def follow(operator: Operator, inputs: Sequence[Placements], hierarchy: Sequence[int]) -> Signature:
    """The signature with these inputs. Raises ShunterError, naming operator, tensors and layouts, if none is.

    Where several have the same inputs, the first whose outputs are not all copied.
    """
    legal = [it for it in signatures(operator, hierarchy) if it.inputs == tuple(inputs)]
    if legal:
        return legal[0]
    given = ", ".join(f"{name} [{told(it)}]" for name, it in zip(operator.inputs, inputs, strict=True))
    options = "; ".join(str(it) for it in signatures(operator, hierarchy)[:6])
    raise ShunterError(
        f"{operator.kind} {operator.name!r} cannot take {given}",
        where=f"{', '.join(operator.inputs)} -> {', '.join(operator.outputs)}",
        mend=f"Convert an input so that one of these fits: {options}.",
    )


def repeated_work(signature: Signature, hierarchy: Sequence[int]) -> int:
    """On how many devices the same work is done; work on parts of a sum counts as repeated too."""
    times = 1
    for letter, size in zip(signature.cut, hierarchy, strict=True):
        times *= 1 if letter else size
    return times


def letter_ranges(
    operator: Operator, signature: Signature, hierarchy: Sequence[int], place: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Which indices of each letter the device at `place` works on."""
    ranges = {letter: (0, length) for letter, length in operator.sizes.items()}
    for letter, size, index in zip(signature.cut, hierarchy, place, strict=True):
        if letter:
            begin, end = ranges[letter]
            first, after = pieces(end - begin, size)[index]
            ranges[letter] = begin + first, begin + after
    return ranges


def _whole_parts(operator: Operator, cut: Sequence[str], hierarchy: Sequence[int]) -> bool:
    """Whether no cut of joined letters falls inside one of the outer letter."""
    for _, parts in operator.expression.joined:
        times = prod(size for letter, size in zip(cut, hierarchy, strict=True) if letter == parts[0])
        if operator.sizes[parts[0]] % times:
            return False
    return True
