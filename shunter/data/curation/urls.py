"""Documents whose address is on a list leave: domains, addresses and words in them (FineWeb, arXiv
2406.17557, section 3.1, as datatrove's URLFilter has it). No list comes along: a person names files of their
own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation.addresses import hostname
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

_REMARK = re.compile(r"(?:^|\s)#")
_BETWEEN = re.compile(r"[^0-9a-z]+")
REASONS = ["domain", "address", "word", "words", "part of a word", "no address"]


class UrlRules(Operator):
    """Drops documents by their address; those without one stay, unless `need_url`.

    Each list is a file with an entry a line; empty lines are nothing, nor what follows `#` at the beginning
    or after a space. Case does not count.
    """

    source: ClassVar[str] = "FineWeb, arXiv 2406.17557, section 3.1; `soft`: its code (datatrove 0.10.1)"
    hint: ClassVar[str] = (
        "FineWeb's domains and addresses are those of the UT1 lists, dsi.ut-capitole.fr/blacklists (CC BY-SA "
        "4.0); none comes along."
    )

    kind: Literal["url-rules"] = Field("url-rules", description="Lists of domains and words of addresses.")
    domains: list[str] = Field([], description="Files of domains; one goes with all below it.")
    urls: list[str] = Field([], description="Files of addresses, without scheme; a `*` at an end: any.")
    words: list[str] = Field([], description="Files of words, one of which is enough; between marks.")
    soft_words: list[str] = Field([], description="Files of words, some of which are enough.")
    soft: int = Field(2, ge=1, description="How many different soft words are enough.")
    parts: list[str] = Field([], description="Files of strings, looked for where all marks are taken out.")
    allow: list[str] = Field([], description="Files of domains that stay whatever the other lists say.")
    need_url: bool = Field(False, description="Documents without an address leave.")

    def files(self) -> list[str]:
        return [*self.domains, *self.urls, *self.words, *self.soft_words, *self.parts, *self.allow]

    def rooted(self, base: Path) -> UrlRules:
        names = ("domains", "urls", "words", "soft_words", "parts", "allow")
        return self.model_copy(
            update={name: [str(base / path) for path in getattr(self, name)] for name in names}
        )

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        if size and "url" not in facts:
            raise ShunterError(
                "url-rules needs addresses, and no source has any", mend="Give a source's `url: FIELD`."
            )
        reason, value = np.full(size, -1, np.int16), np.zeros(size)
        lists = _lists(self.model_dump_json())
        for place, url in enumerate(facts["url"].tolist() if size else []):
            reason[place], value[place] = self.verdict(url, lists)
        return Verdicts(REASONS, reason, value, np.where(reason == 3, float(self.soft), 0.0))

    def verdict(self, url: str, lists: dict[str, frozenset[str]]) -> tuple[int, float]:
        """Number of the reason or -1, and how many entries were found."""
        if not url:
            return (5, 0.0) if self.need_url else (-1, 0.0)
        lower = url.lower()
        host = hostname(lower)
        above = _above(host)
        if not lists["allow"].isdisjoint(above):
            return -1, 0.0
        if not lists["domains"].isdisjoint(above):
            return 0, 1.0
        plain = _plain(lower)
        if plain in lists["urls"] or any(plain[:cut] + "*" in lists["urls"] for cut in _cuts(plain)):
            return 1, 1.0
        words = set(_BETWEEN.split(lower))
        if hits := len(words & lists["words"]):
            return 2, float(hits)
        if (hits := len(words & lists["soft_words"])) >= self.soft:
            return 3, float(hits)
        if lists["parts"]:
            joined = _BETWEEN.sub("", lower)
            if any(part in joined for part in lists["parts"]):
                return 4, 1.0
        return -1, 0.0


def _above(host: str) -> list[str]:
    """The host and all domains above it."""
    labels = host.split(".")
    return [".".join(labels[at:]) for at in range(len(labels))]


def _plain(url: str) -> str:
    return url.split("://", 1)[-1].split("#", 1)[0].removeprefix("www.").rstrip("/")


def _cuts(url: str) -> list[int]:
    """Places after a slash."""
    return [found.end() for found in re.finditer("/", url)]


@lru_cache(maxsize=8)
def _lists(options: str) -> dict[str, frozenset[str]]:
    """The entries of all files, read once a process."""
    rules = UrlRules.model_validate_json(options)
    found = {
        name: frozenset(entry for path in getattr(rules, name) for entry in entries(Path(path)))
        for name in ("domains", "urls", "words", "soft_words", "parts", "allow")
    }
    found["urls"] = frozenset(map(_plain, found["urls"]))
    found["parts"] = frozenset(_BETWEEN.sub("", part) for part in found["parts"]) - {""}
    return found


def entries(path: Path) -> list[str]:
    """The entries of a list, in lower case. A remark begins with # at a line's beginning or after a space.

    Raises ShunterError when the file is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").lower().splitlines()
    except OSError as error:
        raise ShunterError(f"the list cannot be read: {error.strerror}", where=str(path)) from error
    return [entry for line in lines if (entry := _REMARK.split(line, maxsplit=1)[0].strip())]
