"""Documents that lists of words find unsafe leave (MixtureVitae, arXiv 2509.25531, section on safety).

No list comes along: a list says as much about who wrote it as about texts, and over-blocks medicine and law.
A person names files of their own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.addresses import hostname
from shunter.data.curation.licences import GOVERNMENT
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.urls import entries

LISTS = ("flagged", "banned", "hate", "spam", "diet")
REASONS = ["flagged words", "banned words", "hate", "flagged words and hate", "spam"]


class KeywordSafety(Operator):
    """Counts words of lists in a document's beginning and drops it by their shares of its words.

    Lists are of single words, an entry a line, compared in the folded form: without case and diacritics.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on safety"
    ours: ClassVar[tuple[str, ...]] = ("exempt_domains",)

    kind: Literal["keyword-safety"] = Field("keyword-safety", description="Lists of unsafe words.")
    flagged: list[str] = Field([], description="Files of words that may be unsafe.")
    banned: list[str] = Field([], description="Files of words that are unsafe together with flagged ones.")
    hate: list[str] = Field([], description="Files of words of hate.")
    spam: list[str] = Field([], description="Files of words of advertisements.")
    diet: list[str] = Field([], description="Files of words with which a single spam word is enough.")
    chars: int = Field(1000, ge=1, description="Characters of a document that are looked at.")
    max_flagged: float = Field(0.2, ge=0, le=1, description="Above this share of flagged words it goes.")
    lenient: dict[str, float] = Field(
        {}, description="Source -> another max_flagged; the paper: 0.25 for wikis."
    )
    max_both: float = Field(
        0.05, ge=0, le=1, description="Above this of flagged and as much of another list."
    )
    max_hate: float = Field(0.1, ge=0, le=1, description="Above this share of words of hate it goes.")
    max_spam: int = Field(3, ge=0, description="Above this number of spam words it goes.")
    exempt: list[str] = Field([], description="Sources that are not judged, such as books.")
    exempt_domains: list[str] = Field(list(GOVERNMENT), description="Domains that are not judged.")

    def files(self) -> list[str]:
        return [path for name in LISTS for path in getattr(self, name)]

    def rooted(self, base: Path) -> KeywordSafety:
        update = {name: [str(base / path) for path in getattr(self, name)] for name in LISTS}
        return self.model_copy(update=update)

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        heads = Pages([text[: self.chars] for text in pages.texts])
        words = heads.folded().words
        total = np.maximum(words.counts, 1)
        known = _lists(self.model_dump_json())
        hits = {name: words.sums(np.isin(words.hashes, known[name])) for name in LISTS}
        share = {name: hits[name] / total for name in LISTS}
        blank = np.array([""] * size, np.str_)
        sources, urls = facts.get("source", blank).tolist(), facts.get("url", blank).tolist()
        most = np.array([self.lenient.get(source, self.max_flagged) for source in sources])
        both = share["flagged"] > self.max_both
        spam = (hits["spam"] > self.max_spam) | ((hits["spam"] > 0) & (hits["diet"] > 0))
        fails = [
            (share["flagged"] > most, share["flagged"], most),
            (both & (share["banned"] > self.max_both), share["banned"], self.max_both),
            (share["hate"] > self.max_hate, share["hate"], self.max_hate),
            (both & (share["hate"] > self.max_both), share["hate"], self.max_both),
            (spam, hits["spam"], self.max_spam),
        ]
        judged = np.array(
            [not self._exempt(source, url) for source, url in zip(sources, urls, strict=True)], bool
        )
        reason, value, limit = np.full(size, -1, np.int16), np.zeros(size), np.zeros(size)
        for number, (failing, measured, bound) in enumerate(fails):
            fresh = failing & judged & (reason < 0)
            reason[fresh], value[fresh] = number, measured[fresh]
            limit[fresh] = np.broadcast_to(np.asarray(bound, np.float64), size)[fresh]
        return Verdicts(REASONS, reason, value, limit)

    def _exempt(self, source: str, url: str) -> bool:
        host = hostname(url)
        return source in self.exempt or any(
            host == domain or host.endswith("." + domain) for domain in self.exempt_domains
        )


@lru_cache(maxsize=8)
def _lists(options: str) -> dict[str, np.ndarray]:
    """Hashes of the lists' words, read once a process."""
    rules = KeywordSafety.model_validate_json(options)
    found = {}
    for name in LISTS:
        words = [word for path in getattr(rules, name) for word in entries(Path(path))]
        found[name] = Pages(words).folded().words.hashes
    return found
