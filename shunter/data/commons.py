"""A made-up commons of texts: a web whose sites say under which terms, a chosen reference, and sums to learn.

Everything is known of it: which pages a person may use, and which are copies. The terms are said in the words
of real notices; what a gate makes of real pages, where notices are quoted and missing, this cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shunter.data import babel

FREE = (
    "Text is available under CC BY-SA 4.0.", "Licensed under CC-BY 3.0.",
    "This page is in the public domain.", "Released as CC0.", "Creative Commons Attribution licence.",
    "Open Government Licence v3.0.", "Cette page est dans le domaine public.", "Dieser Text ist gemeinfrei.",
)  # fmt: skip
UNFREE = (
    "All rights reserved.", "© 2021 the authors", "Copyright 2019 of the editors.",
    "Licensed under CC BY-NC 4.0.",
    "Creative Commons Attribution, non-commercial.", "CC BY-ND 4.0", "Tous droits réservés.",
    "Alle Rechte vorbehalten.", "Public domain in part. All rights reserved.",
)  # fmt: skip
SHARES = (("free", 0.4), ("unfree", 0.35), ("silent", 0.25))  # of the web's sites
COPIED = 0.15  # of a site's pages that are another one, cut
PAGES = 6  # of a site
THINGS = ("apples", "pears", "books", "coins", "stones", "boats", "hats", "birds")


@dataclass(frozen=True)
class Item:
    """terms: free, unfree or silent; copy: whether the page is another one of its source, cut."""

    source: str
    text: str
    terms: str
    copy: bool = False


def web(count: int, seed: int) -> Iterator[Item]:
    """Pages of sites: a header, prose, and what the site says of its terms."""
    draw = np.random.default_rng([seed, 1])
    language = babel.languages()[0]
    made = 0
    while made < count:
        terms = str(draw.choice([name for name, _ in SHARES], p=[share for _, share in SHARES]))
        notice = {"free": FREE, "unfree": UNFREE, "silent": ("",)}[terms]
        header = "Welcome to the pages of " + " ".join(draw.choice(language.words, 3).tolist())
        footer = str(draw.choice(notice))
        bodies: list[str] = []
        for _ in range(min(PAGES, count - made)):
            copy = bool(bodies) and draw.random() < COPIED
            if copy:
                whole = bodies[int(draw.integers(0, len(bodies)))].split(" ")
                body = " ".join(whole[: max(30, int(len(whole) * 0.7))])
            else:
                body = language.clean(draw)
                bodies.append(body)
            made += 1
            yield Item("web", f"{header}\n\n{body}\n\n{footer}".strip(), terms, copy)


def reference(count: int, seed: int) -> Iterator[Item]:
    """Prose that a person chose by hand: it says nothing of its terms."""
    draw = np.random.default_rng([seed, 2])
    language = babel.languages()[0]
    for _ in range(count):
        yield Item("reference", language.clean(draw), "free")


def sums(count: int, seed: int) -> Iterator[Item]:
    """Small problems with their solutions, some to a text."""
    draw = np.random.default_rng([seed, 3])
    for _ in range(count):
        lines = []
        for _ in range(8):
            a, b = draw.integers(1, 50, 2).tolist()
            thing = str(draw.choice(THINGS))
            lines.append(f"Question: {a} {thing} and {b} more. Answer: {a} + {b} = {a + b} {thing}.")
        yield Item("sums", "\n".join(lines), "free")


MAKERS = {"web": web, "reference": reference, "sums": sums}
