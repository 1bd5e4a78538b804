"""Small problems for programs: an expression of numbers that are read, whose value is to be printed.

Two toy languages write the same expression with the operator behind (`stack`) or in front (`prefix`). What a
problem asks for is the same in every language, and so is how an answer is checked: by running it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shunter.data.puzzles import Draw

Tree = tuple[str, "Tree", "Tree"] | int | None  # operator and operands; a number; the next number read
OPERATORS = "+-*"
CASES = 3  # inputs with which an answer is tried
READ = "xyzuvw"  # what a problem calls the numbers that are read, in this order


@dataclass(frozen=True)
class Problem:
    """key: decides on the split. statement: what is asked. tree: what is to be computed."""

    key: str
    statement: str
    tree: Tree
    reads: int

    def cases(self, seed: int) -> str:
        """Inputs and outputs as JSON, as the reward `code` reads them."""
        draw = Draw(seed, "cases", self.key)
        found = []
        for _ in range(CASES):
            numbers = [2 + draw.below(48) for _ in range(self.reads)]
            value = _value(self.tree, list(numbers))
            found.append({"input": " ".join(map(str, numbers)), "output": str(value)})
        return json.dumps(found)


def problems(length: int, seed: int) -> Iterator[Problem]:
    """Problems without end; some come again. length: numbers in an expression, at least one of them read."""
    number = 0
    while True:
        draw = Draw(seed, "program", number)
        tree = _tree(draw, 2 + draw.below(length - 1))
        names = iter(READ)
        statement = _infix(tree, names)
        reads = len(READ) - sum(1 for _ in names)
        if reads:
            yield Problem(statement, statement, tree, reads)
        number += 1


def written(tree: Tree, language: str) -> str:
    """A program for it, in a fenced block."""
    return f"```\n{_WRITERS[language](tree)}\n```"


def _tree(draw: Draw, leaves: int) -> Tree:
    if leaves == 1:
        return None if draw.below(5) < 3 else 2 + draw.below(8)
    left = 1 + draw.below(leaves - 1)
    return OPERATORS[draw.below(3)], _tree(draw, left), _tree(draw, leaves - left)


def _value(tree: Tree, numbers: list[int]) -> int:
    """Takes what it reads from the front of `numbers`."""
    if tree is None:
        return numbers.pop(0)
    if isinstance(tree, int):
        return tree
    a, b = _value(tree[1], numbers), _value(tree[2], numbers)
    return a + b if tree[0] == "+" else a - b if tree[0] == "-" else a * b


def _infix(tree: Tree, names: Iterator[str], *, inner: bool = False) -> str:
    if tree is None:
        return next(names)
    if isinstance(tree, int):
        return str(tree)
    text = f"{_infix(tree[1], names, inner=True)} {tree[0]} {_infix(tree[2], names, inner=True)}"
    return f"( {text} )" if inner else text


def _stack(tree: Tree) -> str:
    return f"{_postfix(tree)} print"


def _postfix(tree: Tree) -> str:
    if tree is None or isinstance(tree, int):
        return "read" if tree is None else str(tree)
    return f"{_postfix(tree[1])} {_postfix(tree[2])} {tree[0]}"


def _prefix(tree: Tree) -> str:
    if tree is None or isinstance(tree, int):
        return "in" if tree is None else str(tree)
    return f"{tree[0]} {_prefix(tree[1])} {_prefix(tree[2])}"


_WRITERS: dict[str, Callable[[Tree], str]] = {"stack": _stack, "prefix": _prefix}
