"""A web in made-up languages, of which everything is known: what is clean, what is noise, what is copied.

A language is a vocabulary and, for each word, the few words that may follow: a model that learns them needs
few bits. Some noise filters can see (menus, repeats, tables), some they cannot (words in no order). How often
a document is copied tells, as on the web, how likely it is good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FOLLOWERS = 8
ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")
# Copies of a document -> how often, how often filters could drop it, and how often what is left has no order.
CLUSTERS = {
    1: (0.55, 0.45, 0.55),
    2: (0.16, 0.35, 0.35),
    3: (0.11, 0.25, 0.20),
    4: (0.08, 0.15, 0.10),
    5: (0.06, 0.10, 0.05),
    6: (0.04, 0.05, 0.00),
}
BANNERS, BANNER = 3, 40  # texts of a language that stand on so many sites


@dataclass(frozen=True)
class Language:
    """words in order of frequency; follows: int [words, FOLLOWERS]; end: what ends a sentence."""

    name: str
    words: list[str]
    follows: np.ndarray
    end: str

    def clean(self, draw: np.random.Generator) -> str:
        """Paragraphs of sentences in which each word follows from the one before."""
        paragraphs = []
        for _ in range(int(draw.integers(2, 5))):
            found = [self.sentence(draw, True) for _ in range(int(draw.integers(3, 7)))]
            paragraphs.append(" ".join(found))
        return "\n\n".join(paragraphs)

    def scrambled(self, draw: np.random.Generator) -> str:
        """The same with every word drawn alone: sentences to look at, and nothing to learn."""
        paragraphs = []
        for _ in range(int(draw.integers(2, 5))):
            found = [self.sentence(draw, False) for _ in range(int(draw.integers(3, 7)))]
            paragraphs.append(" ".join(found))
        return "\n\n".join(paragraphs)

    def noise(self, draw: np.random.Generator) -> str:
        """A menu, a table or one sentence again and again."""
        kind = int(draw.integers(0, 3))
        words = [self.words[i] for i in draw.integers(0, len(self.words), 90).tolist()]
        if kind == 0:
            return "\n".join(" ".join(words[i : i + int(draw.integers(1, 3))]) for i in range(60))
        if kind == 1:
            return "\n".join(f"{word} | {int(draw.integers(0, 999))} | {i} #" for i, word in enumerate(words))
        return " ".join([self.sentence(draw, True)] * 14)

    def edited(self, text: str, draw: np.random.Generator) -> str:
        """A copy with one word changed."""
        words = text.split(" ")
        words[int(draw.integers(0, len(words)))] = self.words[int(draw.integers(0, len(self.words)))]
        return " ".join(words)

    def sentence(self, draw: np.random.Generator, ordered: bool = True) -> str:
        """Some words, each from the one before or drawn alone, and what ends a sentence."""
        size = int(draw.integers(6, 13))
        word = int(len(self.words) * draw.random() ** 3)
        found = [self.words[word]]
        for _ in range(size):
            if ordered:
                word = int(self.follows[word, int(FOLLOWERS * draw.random() ** 2)])
            else:
                word = int(len(self.words) * draw.random() ** 3)
            found.append(self.words[word])
        return found[0][:1].upper() + " ".join(found)[1:] + self.end


def languages() -> list[Language]:
    """aa: short words, English stopwords. bb: long words of other letters. cc: shares half its words with aa.
    dd: ends no sentence with a mark. The same ones always."""
    draw = np.random.default_rng(77)
    aa = [*ENGLISH, *_words(draw, "aeioutnrslmkpdg", 5, 292)]
    bb = _words(draw, "абвгдежзиклмнопрст", 14, 300)
    cc = [word if place % 2 else _words(draw, "aeiouhjvwzybf", 5, 1)[0] for place, word in enumerate(aa)]
    dd = _words(draw, "αβγδεζηθικλμνξ", 6, 300)
    return [
        Language(name, words, _follows(draw, len(words)), end)
        for name, words, end in (("aa", aa, "."), ("bb", bb, "."), ("cc", cc, "."), ("dd", dd, ""))
    ]


def web(language: Language, groups: int, seed: int) -> Iterator[tuple[str, str]]:
    """(text, what it is: clean, scrambled, noise or banner) in no order, `groups` of them before copies."""
    draw = np.random.default_rng([seed, *language.name.encode()])
    sizes = list(CLUSTERS)
    chances = np.array([CLUSTERS[size][0] for size in sizes])
    found: list[tuple[str, str]] = []
    for size in draw.choice(sizes, groups, p=chances / chances.sum()).tolist():
        _, seen, hidden = CLUSTERS[size]
        if draw.random() < seen:
            kind, text = "noise", language.noise(draw)
        elif draw.random() < hidden:
            kind, text = "scrambled", language.scrambled(draw)
        else:
            kind, text = "clean", language.clean(draw)
        found.append((text, kind))
        found += [(language.edited(text, draw), kind) for _ in range(size - 1)]
    for _ in range(BANNERS):
        text = language.noise(draw)
        found += [(language.edited(text, draw), "banner") for _ in range(BANNER)]
    for place in draw.permutation(len(found)).tolist():
        yield found[place]


def reference(language: Language, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Clean texts, none copied."""
    draw = np.random.default_rng([seed, 1, *language.name.encode()])
    for _ in range(count):
        yield language.clean(draw), "clean"


def _words(draw: np.random.Generator, letters: str, length: int, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        size = max(2, int(draw.normal(length, length / 5)))
        found["".join(letters[i] for i in draw.integers(0, len(letters), size).tolist())] = None
    return list(found)


def _follows(draw: np.random.Generator, size: int) -> np.ndarray:
    # Frequent words follow oftener, in this order too.
    return (size * draw.random((size, FOLLOWERS)) ** 3).astype(np.int64)
