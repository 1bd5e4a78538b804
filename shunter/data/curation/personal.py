"""Personal data: addresses of mail and of machines become placeholders."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Operator, Verdicts
from shunter.data.curation.pages import Pages

_MAIL = re.compile(r"(?<![\w.+-])[\w][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")


class MaskPersonal(Operator):
    """Masks mail addresses and public IPv4 addresses (FineWeb, arXiv 2406.17557, section 3.7)."""

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
            text, mails = pages.texts[number], 0
            if self.mail is not None:
                text, mails = _MAIL.subn(self.mail, text)
            before = text
            if self.address is not None:
                text = _ADDRESS.sub(self._masked, text)
            counts["mail addresses"] += mails
            counts["network addresses"] += text != before
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

    def _masked(self, found: re.Match[str]) -> str:
        try:
            known = ipaddress.IPv4Address(found.group())
        except ValueError:
            return found.group()
        return str(self.address) if known.is_global else found.group()
