"""A second look at small languages: documents without one word of their own are contamination (FineWeb2,
arXiv 2506.20920, section 3.6 and misc/precision_filtering)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.addresses import hostname
from shunter.data.curation.gopher import different
from shunter.data.curation.operators import Barrier, Facts, Keys, Rule, Verdicts, decide
from shunter.data.curation.pages import Pages

AFFINITY, FREQUENT, CONTAMINATED, SAMPLED = 0.85, 0.95, 0.10, 10_000


def own_words(
    counts: Mapping[str, Counter[str]], affinity: float = AFFINITY, frequent: float = FREQUENT
) -> dict[str, list[str]]:
    """For each language the words that are nearly its own: of all times a word is said, `affinity` are in it.

    counts: language -> word -> times, of reference texts. Only words at or above the quantile `frequent` of
    their language's counts are looked at. Sorted by falling count.
    """
    total: Counter[str] = Counter()
    for words in counts.values():
        total.update(words)
    found = {}
    for language, words in counts.items():
        least = float(np.quantile(list(words.values()), frequent)) if words else 0.0
        own = [w for w, n in words.items() if n >= least and n / total[w] >= affinity]
        found[language] = sorted(own, key=lambda word: (-words[word], word))
    return found


def contamination(pages: Pages, words: Sequence[str]) -> float:
    """Share of documents that have none of the words."""
    return float(np.mean(different(pages.words, words) == 0)) if len(pages) else 0.0


def needed(pages: Pages, words: Sequence[str], above: float = CONTAMINATED) -> bool:
    """Whether a language is so contaminated that the filter is worth what it wrongly drops.

    pages: a sample of its documents; the paper takes 10,000.
    """
    return contamination(pages, words) > above


def speaks(url: str, code: str, names: Sequence[str] = (), domains: Sequence[str] = ()) -> bool:
    """Whether an address tells the language: its code stands between marks or in capitals, its host ends in
    one of the top-level `domains`, or a name of the language or region is in it, marks aside.

    (The released matcher looks for ".tld/" inside the host, where it cannot be; the host's end is meant.)
    """
    rest = re.sub(r"^[a-z]+://", "", url)
    host = hostname(url)
    if any(host.endswith("." + domain.lower().lstrip(".")) for domain in domains):
        return True
    if re.search(rf"(?<![a-z0-9]){re.escape(code.lower())}(?![a-z0-9])", rest.lower()):
        return True
    if code.upper() in rest:
        return True
    plain = re.sub(r"[^\w/.]|_", "", rest.lower())
    return any(re.sub(r"[^\w/.]|_", "", name.lower()) in plain for name in names if name)


class PrecisionFilter(Barrier):
    """Drops documents of one language without a word of its own, unless their address speaks it.

    Where no more than `above` of the language's first `sampled` documents lack one, all stay: of a clean
    language the filter would drop what is right.
    """

    source: ClassVar[str] = "FineWeb2, arXiv 2506.20920, section 3.6"

    kind: Literal["precision"] = Field("precision", description="Wants one of a language's own words.")
    language: str = Field(description="The language whose documents are looked at; others pass.")
    words: list[str] = Field([], description="Its own words; default: those that the job's `limits` found.")
    code: str = Field("", description="Its code in addresses; empty: addresses save no document.")
    names: list[str] = Field([], description="Names of the language and its regions in addresses.")
    domains: list[str] = Field([], description="Top-level domains of its regions.")
    above: float | None = Field(
        CONTAMINATED, ge=0, le=1, description="Share without an own word above which it runs; null: always."
    )
    sampled: int = Field(SAMPLED, ge=1, description="Documents of the language that tell that share.")

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        absent = np.asarray(different(pages.words, self.words) == 0)
        mine = np.ones(len(pages), bool)
        if "language" in facts:
            mine = np.asarray(facts["language"] == self.language, bool)
        goes = absent & mine
        if self.code and "url" in facts:
            for place in np.flatnonzero(goes).tolist():
                goes[place] = not speaks(str(facts["url"][place]), self.code, self.names, self.domains)
        return {"absent": absent, "mine": mine, "goes": goes}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """goes: bool per document."""
        sample = np.flatnonzero(np.asarray(keys["mine"]))[: self.sampled]
        share = float(np.asarray(keys["absent"])[sample].mean()) if len(sample) else 0.0
        goes = np.asarray(keys["goes"])
        return {"goes": goes if self.above is None or share > self.above else np.zeros(len(goes), bool)}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        found = {"words": np.where(settled["goes"], 0, 1)}
        return decide([Rule("no word of the language", "words", low=1)], found, len(pages))

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        """Each document by itself, however clean the language is."""
        return self.judge_settled(pages, self.keys_with(pages, facts))
