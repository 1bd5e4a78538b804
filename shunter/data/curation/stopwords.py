"""The words that every text of a language has (FineWeb2, arXiv 2506.20920, section 3.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shunter.data.curation import glyphs
from shunter.data.curation.pages import Pages

SHARE, LEAST = 0.008, 8


def counted(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts; marks and numbers are no words."""
    counts: Counter[str] = Counter()
    kinds = glyphs.flags()
    for text in texts:
        counts.update(Pages([text]).words.texts(0))
    return Counter({word: n for word, n in counts.items() if any(kinds[ord(c)] & glyphs.ALPHA for c in word)})


def stopwords(counts: Counter[str], share: float = SHARE, least: int = LEAST) -> list[str]:
    """Words that are at least `share` of all, the most frequent first; the share falls until `least` are
    there, or all words there are. Equally frequent ones are in the order of the alphabet."""
    total = sum(counts.values())
    order = sorted(counts, key=lambda word: (-counts[word], word))
    above = sum(counts[word] >= share * total for word in order)
    return order[: max(above, min(least, len(order)))]
