"""Licences by positive inclusion: a document stays only for a reason that is named (MixtureVitae, arXiv
2509.25531, section 3).

The phrases are evidence, no legal advice: a page may quote one that is not its own.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.addresses import hostname
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

Tier = Literal["1", "2a", "2b", "3"]
WINDOW = 100  # characters at the head and the tail of a document where notices stand
GOVERNMENT = (
    "gov", "mil", "gov.uk", "gov.au", "govt.nz", "gc.ca", "gouv.fr", "gob.es", "gob.mx", "gov.br", "gov.in",
    "go.jp", "europa.eu", "un.org", "who.int", "oecd.org", "nato.int", "worldbank.org",
)  # fmt: skip
# Anywhere in a document: Creative Commons licences that forbid commerce or changes.
_UNFREE = re.compile(
    r"\bcc[ -]?by[ -](?:nc|nd)\b|\bby-nc\b|\bby-nd\b|creativecommons\.org/licenses/by-(?:nc|nd)|"
    r"creative commons[^.\n]{0,60}(?:non-?commercial|no-?deriv)|"
    r"\bnon-?commercial (?:use|licen[cs]e|purposes)|"
    r"\bno-?derivat\w+|nicht[ -]?kommerziell|pas d.utilisation commerciale|uso no comercial|não comercial|"
    r"non commerciale|некоммерческ|非商用|非商业|非營利",
    re.IGNORECASE,
)
# At head or tail: notices that keep all rights.
_RESERVED = re.compile(
    r"all rights reserved|©|\(c\) ?(?:19|20)\d\d|copyright (?:19|20)\d\d|alle rechte vorbehalten|"
    r"tous droits réservés|"
    r"todos los derechos reservados|todos os direitos reservados|tutti i diritti riservati|"
    r"все права защищены|"
    r"版权所有|無断転載|photo(?:graph)? by|image credit|getty images",
    re.IGNORECASE,
)
_FREE = re.compile(
    r"\bcc[ -]?by(?:-sa)?(?:[ -][1-4]\.\d)?\b(?!-n)|\bcc0\b|"
    r"creativecommons\.org/(?:licenses/by(?:-sa)?/|publicdomain/)|"
    r"creative commons (?:attribution|zero)|(?<!not in the )(?<!not )public domain|"
    r"\b(?:mit|apache|bsd) licen[cs]e|"
    r"open government licen[cs]e|"
    r"domaine public|dominio público|domínio público|gemeinfrei|общественное достояние|公有领域",
    re.IGNORECASE,
)


# What a text must hold for a pattern to be found in it: looked for first, as it takes a tenth of the time.
_UNFREE_HINTS = (
    "by nc", "by nd", "by-nc", "by-nd", "creative commons", "noncommercial", "non-commercial", "noderivat",
    "no-derivat", "kommerziell", "utilisation commerciale", "no comercial", "não comercial",
    "non commerciale", "некоммерческ", "非商用", "非商业", "非營利",
)  # fmt: skip
_FREE_HINTS = (
    "ccby", "cc by", "cc-by", "cc0", "creativecommons.org/", "creative commons", "public domain", "mit licen",
    "apache licen", "bsd licen", "open government licen", "domaine public", "dominio público",
    "domínio público", "gemeinfrei", "общественное достояние", "公有领域",
)  # fmt: skip
# Letters that patterns without case take for others, and `lower` does not: long and dotless ones, and those
# that Unicode has for Cyrillic as it was written once.
_ALIKE = {0x17F: 0x73, 0x130: 0x69, 0x131: 0x69}
_ALIKE |= dict(zip(range(0x1C80, 0x1C87), (0x432, 0x434, 0x43E, 0x441, 0x442, 0x442, 0x44A), strict=True))


class LicenceTiers(Operator):
    """Gives each document its tier and the rule that it stays by; unknown ones go.

    Tier 1: openly licensed or public domain. 2a: permissive of opaque origin. 2b: synthetic of unknown
    origin. 3: governments' works. A restrictive notice beats every permission. Of the address a domain alone
    counts.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section 3"
    ours: ClassVar[tuple[str, ...]] = ("domains",)

    kind: Literal["licence-tiers"] = Field("licence-tiers", description="Keeps what may be used, by tier.")
    sources: dict[str, Tier] = Field({}, description="Source -> tier, for sources that were chosen by hand.")
    domains: list[str] = Field(list(GOVERNMENT), description="Domains of tier 3, with all below them.")
    tiers: list[Tier] = Field(["1", "2a", "3"], min_length=1, description="Tiers that stay.")
    window: int = Field(WINDOW, ge=0, description="Characters at head and tail where notices are looked for.")

    def columns(self) -> dict[str, str]:
        return {"tier": "string", "licence_rule": "string"}

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        blank = np.full(size, "", object)
        urls, sources = facts.get("url", blank).tolist(), facts.get("source", blank).tolist()
        reason = np.full(size, -1, np.int16)
        tiers, rules = [], []
        for place, (text, url, source) in enumerate(zip(pages.texts, urls, sources, strict=True)):
            number, tier, rule = self.tier(text, url, source)
            if number < 0 and tier not in self.tiers:
                number = REASONS.index("a tier that is not wanted")
            reason[place] = number
            tiers.append(tier)
            rules.append(rule)
        told = {"tier": np.array(tiers, object), "licence_rule": np.array(rules, object)}
        return Verdicts(REASONS, reason, np.zeros(size), np.zeros(size), told)

    def tier(self, text: str, url: str, source: str) -> tuple[int, str, str]:
        """Number of the reason to go or -1, tier, and the rule that decided."""
        lower = small(text)
        if found := _found(_UNFREE, _UNFREE_HINTS, text, lower):
            return 0, "", f"text: {found.group()[:60]}"
        ends = (text[: self.window], text[max(self.window, len(text) - self.window) :])
        for part in ends:
            if found := _RESERVED.search(part):
                return 1, "", f"notice: {found.group()[:60]}"
        if source in self.sources:
            return -1, self.sources[source], f"source: {source}"
        host = hostname(url)
        for domain in self.domains:
            if host == domain or host.endswith("." + domain):
                return -1, "3", f"domain: {domain}"
        if found := _found(_FREE, _FREE_HINTS, text, lower):
            if again := _RESERVED.search(text):
                return 1, "", f"text: {again.group()[:60]}"
            return -1, "1", f"phrase: {found.group()[:60]}"
        return 2, "", "none"


def small(text: str) -> str:
    """The text in small letters, so that a hint is in it wherever a pattern without case may be found."""
    return text.lower() if text.isascii() else text.translate(_ALIKE).lower()


def _found(pattern: re.Pattern[str], hints: tuple[str, ...], text: str, lower: str) -> re.Match[str] | None:
    """`pattern.search(text)`."""
    return pattern.search(text) if any(hint in lower for hint in hints) else None


REASONS = ["unfree licence", "rights reserved", "licence unknown", "a tier that is not wanted"]
