"""Arithmetic questions from the calculator notes of worked problems (`<<48/2=24>>` in GSM8K)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NOTE = re.compile(r"<<(\d{1,9})([-+*/])(\d{1,9})=(\d{1,10})>>")
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_PHRASINGS = (
    "What is {a} {op} {b}?",
    "{a} {op} {b} =",
    "Calculate {a} {op} {b}.",
    "What is {a} {word} {b}?",
    "How much is {a} {word} {b}?",
)


@dataclass(frozen=True)
class Expression:
    """Two whole numbers and the operation between them, with a whole result that is not negative."""

    a: int
    op: str
    b: int

    @property
    def value(self) -> int:
        """The result."""
        return {
            "+": lambda: self.a + self.b,
            "-": lambda: self.a - self.b,
            "*": lambda: self.a * self.b,
            "/": lambda: self.a // self.b,
        }[self.op]()

    @property
    def key(self) -> str:
        """The same for 2+3 and 3+2, so that neither stands in the train split when the other is held out."""
        a, b = sorted((self.a, self.b)) if self.op in "+*" else (self.a, self.b)
        return f"{a}{self.op}{b}"


def expressions(text: str) -> Iterator[Expression]:
    """The two-term notes of a worked answer whose result is right and whole; others are passed over."""
    for a, op, b, result in _NOTE.findall(text):
        if op == "/" and (int(b) == 0 or int(a) % int(b)):
            continue
        found = Expression(int(a), op, int(b))
        if found.value == int(result):
            yield found


def table(limit: int) -> dict[str, Expression]:
    """Sums, differences and products of two numbers from 0 (products: 2) to `limit`, by key; 0: none."""
    found: dict[str, Expression] = {}
    numbers = range(limit + 1) if limit else range(0)
    for op in "+-*":
        for a in numbers:
            for b in numbers:
                if (op == "-" and b > a) or (op == "*" and min(a, b) < 2):
                    continue
                expression = Expression(a, op, b)
                found.setdefault(expression.key, expression)
    return found


def phrasings() -> int:
    """How many ways there are to ask."""
    return len(_PHRASINGS)


def ask(expression: Expression, phrasing: int) -> list[dict[str, str]]:
    """A conversation that asks for the result in one of the ways and answers with the number alone."""
    question = _PHRASINGS[phrasing % len(_PHRASINGS)].format(
        a=expression.a, op=expression.op, b=expression.b, word=_WORDS[expression.op]
    )
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": str(expression.value)},
    ]
