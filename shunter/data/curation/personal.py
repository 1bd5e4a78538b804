"""Personal data: addresses of mail and of machines become placeholders."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Operator, Verdicts
from shunter.data.curation.pages import Pages

# Letters of scripts that part words by spaces: others would be taken along from the sentence around.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f"
)
_LETTER = rf"(?:(?![{_UNSPACED}])\w)"
_LABEL = rf"(?!-)(?:{_LETTER}|-){{1,63}}"
_TOP = rf"(?:xn--[A-Za-z0-9-]{{2,59}}|(?:(?!\d|_){_LETTER}){{2,24}})"
# What stands before an @ and after it. They are looked for there alone: most texts have few.
_NAME = re.compile(rf"(?<!{_LETTER}){_LETTER}(?:{_LETTER}|[.+'%&!#$*^~-]){{0,63}}$")
_DOMAIN = re.compile(rf"(?:{_LABEL}\.){{1,8}}{_TOP}(?!(?!_){_LETTER})")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")


class MaskPersonal(Operator):
    """Masks mail addresses and public IPv4 addresses (FineWeb, arXiv 2406.17557, section 3.7).

    Names and domains may have letters of any script with spaces between words. Quoted names ("a b"@c.org)
    and names with a slash, equals sign or question mark are not known, as these part what stands in links.
    """

    source: ClassVar[str] = "FineWeb, arXiv 2406.17557, section 3.7"
    ours: ClassVar[tuple[str, ...]] = ("mail", "address")

    kind: Literal["mask-personal"] = Field("mask-personal", description="Masks mail and network addresses.")
    mail: str | None = Field("email@example.com", description="What stands for a mail address.")
    address: str | None = Field(
        "192.0.2.1", description="What stands for a public IPv4 address; from a block kept for examples."
    )

    def judge(self, pages: Pages) -> Verdicts:
        size = len(pages)
        texts: list[str] | None = None
        counts = {"mail addresses": 0, "network addresses": 0}
        marked = (pages.count("@") > 0) if self.mail is not None else np.zeros(size, bool)
        if self.address is not None:
            marked |= pages.count(".") > 2
        for number in np.flatnonzero(marked).tolist():
            text = pages.texts[number]
            if self.mail is not None:
                text, masked = _put(self.mail, text, _mails(text))
                counts["mail addresses"] += masked
            if self.address is not None:
                text, masked = _put(self.address, text, _public(text))
                counts["network addresses"] += masked
            if text != pages.texts[number]:
                texts = list(pages.texts) if texts is None else texts
                texts[number] = text
        return Verdicts(
            [],
            np.full(size, -1, np.int16),
            np.zeros(size),
            np.zeros(size),
            texts=texts,
            counts={name: count for name, count in counts.items() if count},
        )


def _mails(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each mail address."""
    begin, at = 0, text.find("@")
    while at >= 0:
        name = _NAME.search(text, max(begin, at - 64), at)
        if name and (domain := _DOMAIN.match(text, at + 1)):
            yield name.start(), domain.end()
            begin = domain.end()
        at = text.find("@", max(at + 1, begin))


def _public(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each IPv4 address that is reached from everywhere."""
    for found in _ADDRESS.finditer(text):
        try:
            public = ipaddress.IPv4Address(found.group()).is_global
        except ValueError:  # a part above 255
            continue
        if public:
            yield found.span()


def _put(mask: str, text: str, places: Iterator[tuple[int, int]]) -> tuple[str, int]:
    """The text with the mask in these places, and how many there are."""
    parts: list[str] = []
    begin = 0
    for low, high in places:
        parts += [text[begin:low], mask]
        begin = high
    return "".join([*parts, text[begin:]]), len(parts) // 2
