"""Clean texts with what clutters web pages put between and into their lines, so that it is known which
characters are noise; and an expert who takes it out, and sometimes errs or rewrites.

The noise has few forms and its own words: to tell it is easy. What this is for is whether a model can say
where it stands, and what its removal is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shunter.data import babel
from shunter.data.curation.differences import without
from shunter.data.curation.edits import lines_of

MENU = ("Home", "About", "Contact", "Login", "Search", "Help", "News", "Shop")
ADS = ("Buy now and save!", "Best offers today!", "Subscribe for free!", "Download our app!", "Win a prize!")
FOOTERS = ("All rights reserved.", "Privacy policy", "Terms of use", "Cookie settings", "Back to top")
DIVIDERS = ("----------", "==========", "* * * * *")
INSERTS = (" (Share this)", " [Read more]", " (Click here)", " [Print page]")
SHARES = {"clean": 0.2, "littered": 0.7, "junk": 0.1}  # of the texts
LINES = (2, 7)  # of prose in a text, the latter not reached; other pairs are likewise
RUN, BETWEEN = (1, 3), (1, 3)  # lines of noise at either end, and after a line of prose
AMONG = 0.4  # of the lines of prose are followed by noise
INSERTED = 0.15  # have a string put in
# An expert leaves a line or string of noise, deletes a line of prose, gives it with another word, or writes
# a text's lines anew, every second one.
MISSED, WRONG, SLIPPED, REWRITTEN = 0.03, 0.01, 0.01, 0.1


@dataclass(frozen=True)
class Line:
    """text: what is put in included. insert: that, at its end; noise: all of it is."""

    text: str
    insert: str = ""
    noise: bool = False


@dataclass(frozen=True)
class Littered:
    """noise: [begin, end) of what was put in, line feeds included; the text less it is `clean`. expert: what
    an expert made of the text; "" where nothing was worth keeping."""

    text: str
    noise: list[tuple[int, int]]
    expert: str

    @property
    def clean(self) -> str:
        """Without the noise."""
        return without(self.text, self.noise)


def littered(count: int, seed: int) -> Iterator[Littered]:
    """Texts of one made-up language, a sentence a line."""
    draw = np.random.default_rng([seed, 4])
    language = babel.languages()[0]
    for kind in draw.choice(list(SHARES), count, p=list(SHARES.values())).tolist():
        lines: list[Line] = []
        if kind != "junk":
            for _ in range(int(draw.integers(*LINES))):
                lines.append(_prose(draw, language, kind == "littered"))
                if kind == "littered" and draw.random() < AMONG:
                    lines += [_between(draw, language) for _ in range(int(draw.integers(*BETWEEN)))]
        if kind != "clean":
            menus = [_menu(draw) for _ in range(int(draw.integers(*RUN)))]
            feet = [Line(str(draw.choice(FOOTERS)), noise=True) for _ in range(int(draw.integers(*RUN)))]
            lines = [*menus, *lines, *feet]
        text = "\n".join(line.text for line in lines)
        yield Littered(text, _noise(text, lines), _expert(lines, draw, language))


def _prose(draw: np.random.Generator, language: babel.Language, inserts: bool) -> Line:
    text = language.sentence(draw)
    insert = str(draw.choice(INSERTS)) if inserts and draw.random() < INSERTED else ""
    return Line(text + insert, insert)


def _menu(draw: np.random.Generator) -> Line:
    names = draw.choice(MENU, int(draw.integers(2, 5)), replace=False).tolist()
    return Line(" | ".join(names), noise=True)


def _between(draw: np.random.Generator, language: babel.Language) -> Line:
    """An advertisement, a link or a divider."""
    link = f"More: www.{draw.choice(language.words)}.com/{draw.choice(language.words)}"
    return Line(str(draw.choice([draw.choice(ADS), link, draw.choice(DIVIDERS)])), noise=True)


def _noise(text: str, lines: list[Line]) -> list[tuple[int, int]]:
    """Lines with their line feed; those at the end with that before them, as an edit program takes them."""
    last = max((number for number, line in enumerate(lines) if not line.noise), default=-1)
    found = []
    for number, (line, (low, high)) in enumerate(zip(lines, lines_of(text), strict=True)):
        if line.noise:
            ending = number > last >= 0
            found.append((low - 1, high) if ending else (low, min(high + 1, len(text))))
        elif line.insert:
            found.append((high - len(line.insert), high))
    return found


def _expert(lines: list[Line], draw: np.random.Generator, language: babel.Language) -> str:
    rewrites = draw.random() < REWRITTEN
    kept = []
    for line in lines:
        text = line.text.removesuffix(line.insert) if draw.random() >= MISSED else line.text
        if draw.random() >= (MISSED if line.noise else 1 - WRONG):
            continue
        if rewrites and not line.noise and draw.random() < 0.5:
            text = language.sentence(draw)
        elif draw.random() < SLIPPED:
            parts = text.split(" ")
            parts[int(draw.integers(0, len(parts)))] = str(draw.choice(language.words))
            text = " ".join(parts)
        kept.append(text)
    return "\n".join(kept)
