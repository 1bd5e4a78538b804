"""Questions without end whose answers a rule can check: a model may practise on them and be asked others.

Which split a puzzle belongs to is decided by its key, in which the order of what is shown does not count
where it does not matter for the answer: no held-out puzzle stands in the train split in another order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from shunter.config.seed import derive_seed

Kind = Literal["parity", "largest", "count", "sort", "reverse", "calculate", "odd"]
LETTERS = "abcde"


@dataclass(frozen=True)
class Puzzle:
    """A conversation that ends with the right answer, and the key that decides on its split."""

    kind: str
    key: str
    messages: list[dict[str, str]]


class Draw:
    """Whole numbers of one stream, named by a seed and words."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self.seed, self.names, self.count = seed, names, 0

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        self.count += 1
        return derive_seed(self.seed, *self.names, self.count) % limit


def puzzles(kind: Kind, length: int, seed: int) -> Iterator[Puzzle]:
    """Puzzles of one kind without end; some come again. length: of what is shown: digits, letters."""
    make, number = _MAKERS[kind], 0
    while True:
        yield make(Draw(seed, "puzzle", kind, number), length)
        number += 1


def mistaken(puzzle: Puzzle, seed: int) -> Puzzle:
    """The same question with a wrong answer of the same form: noise, as data that people write have it."""
    draw, right = Draw(seed, "mistake", puzzle.key), puzzle.messages[-1]["content"]
    words = right.split()
    if right in ("even", "odd"):
        wrong = "odd" if right == "even" else "even"
    elif puzzle.kind == "odd":
        wrong = _picked(puzzle, draw)
    elif len(words) > 1:
        swaps = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        if swaps:
            i = swaps[draw.below(len(swaps))]
            words[i], words[i + 1] = words[i + 1], words[i]
            wrong = " ".join(words)
        else:
            wrong = " ".join(words[:-1])
    else:
        last = (int(right[-1]) + 1 + draw.below(9)) % 10
        wrong = f"{right[:-1]}{last}"
    said = {"role": "assistant", "content": wrong}
    return Puzzle(puzzle.kind, puzzle.key, [*puzzle.messages[:-1], said])


def _asked(kind: str, key: str, question: str, answer: str) -> Puzzle:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Puzzle(kind, f"{kind} {key}", messages)


def _digits(draw: Draw, length: int) -> list[str]:
    return [str(draw.below(10)) for _ in range(length)]


def _parity(draw: Draw, length: int) -> Puzzle:
    shown = str(int("".join(_digits(draw, length))))
    return _asked("parity", shown, f"Is {shown} even or odd?", "odd" if int(shown) % 2 else "even")


def _largest(draw: Draw, length: int) -> Puzzle:
    shown = _digits(draw, length)
    key = "".join(sorted(shown))
    return _asked("largest", key, f"Which is the largest of {' '.join(shown)}?", max(shown))


def _count(draw: Draw, length: int) -> Puzzle:
    shown = [LETTERS[draw.below(len(LETTERS))] for _ in range(length)]
    wanted = LETTERS[draw.below(len(LETTERS))]
    key = wanted + "".join(sorted(shown))
    return _asked(
        "count", key, f"How many {wanted} are there in {' '.join(shown)}?", str(shown.count(wanted))
    )


def _sort(draw: Draw, length: int) -> Puzzle:
    shown = _digits(draw, length)
    return _asked("sort", "".join(sorted(shown)), f"Sort {' '.join(shown)}.", " ".join(sorted(shown)))


def _reverse(draw: Draw, length: int) -> Puzzle:
    shown = _digits(draw, length)
    return _asked("reverse", "".join(shown), f"Turn {' '.join(shown)} round.", " ".join(shown[::-1]))


def _odd(draw: Draw, length: int) -> Puzzle:
    """An answer of any length up to that of what is shown, and never none."""
    shown = _digits(draw, length - 1)
    shown.insert(draw.below(length), str(2 * draw.below(5) + 1))
    right = [digit for digit in shown if int(digit) % 2]
    return _asked("odd", "".join(sorted(shown)), f"Which of {' '.join(shown)} are odd?", " ".join(right))


def _picked(puzzle: Puzzle, draw: Draw) -> str:
    """Of what is shown, half of the odd digits and a quarter of the others, on average."""
    shown = re.findall(r"\d", puzzle.messages[0]["content"])
    said = [digit for digit in shown if draw.below(4) < (2 if int(digit) % 2 else 1)] or shown[:1]
    wrong = " ".join(said)
    return f"{wrong} {said[0]}" if wrong == puzzle.messages[-1]["content"] else wrong


def _calculate(draw: Draw, length: int) -> Puzzle:
    """With a tool: the model writes what is to be calculated, is told the result, and says it."""
    low = 10 ** (length - 1)
    a, b = (low + draw.below(9 * low) for _ in range(2))
    op = "+*"[draw.below(2)]
    result = str(a + b if op == "+" else a * b)
    key = op.join(map(str, sorted((a, b))))
    messages = [
        {"role": "user", "content": f"What is {a} {op} {b}?"},
        {"role": "assistant", "content": f"<<{a}{op}{b}>>"},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": result},
    ]
    return Puzzle("calculate", f"calculate {key}", messages)


_MAKERS: dict[str, Callable[[Draw, int], Puzzle]] = {
    "parity": _parity,
    "largest": _largest,
    "count": _count,
    "sort": _sort,
    "reverse": _reverse,
    "calculate": _calculate,
    "odd": _odd,
}
