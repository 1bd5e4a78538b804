"""How much of an evaluation's question stands in what is trained on (arXiv 2411.15124, section 3.2).

A question's score against a text is the share of its words that lie in runs of `size` words which the text
has too. A question with fewer words is one run. Words are compared in lower case; each sign is a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and signs, each alone, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


@dataclass(frozen=True)
class Match:
    """A text that holds more than the allowed share of a question of an evaluation."""

    evaluation: str
    question: str
    share: float


class Contamination:
    """The questions of evaluations, by the runs of words in them."""

    def __init__(self, evaluations: Mapping[str, Sequence[str]], size: int = 8, most: float = 0.5) -> None:
        """most: the share of a question's words above which a text matches it."""
        self.size, self.most = size, most
        self.questions: list[tuple[str, str, list[str]]] = []
        self._runs: dict[tuple[str, ...], list[int]] = {}
        self._sizes: set[int] = set()
        for name, texts in evaluations.items():
            for text in texts:
                asked = words(text)
                if not asked:
                    continue
                length = min(size, len(asked))
                self._sizes.add(length)
                for run in {tuple(asked[i : i + length]) for i in range(len(asked) - length + 1)}:
                    self._runs.setdefault(run, []).append(len(self.questions))
                self.questions.append((name, text, asked))

    def worst(self, text: str) -> Match | None:
        """The question that the text holds most of, where that is more than is allowed."""
        said = words(text)
        common: dict[int, set[tuple[str, ...]]] = {}
        for length in self._sizes:
            for i in range(len(said) - length + 1):
                run = tuple(said[i : i + length])
                for number in self._runs.get(run, ()):
                    common.setdefault(number, set()).add(run)
        best: Match | None = None
        for number, runs in common.items():
            name, question, asked = self.questions[number]
            share = _covered(asked, runs) / len(asked)
            if share > self.most and (best is None or share > best.share):
                best = Match(name, question, share)
        return best


def _covered(asked: Sequence[str], runs: set[tuple[str, ...]]) -> int:
    """Words of a question that lie in one of these runs, all of which have one length."""
    length = len(next(iter(runs)))
    seen: set[int] = set()
    for i in range(len(asked) - length + 1):
        if tuple(asked[i : i + length]) in runs:
            seen.update(range(i, i + length))
    return len(seen)
