"""In which letters a text is written: a script's code (ISO 15924) and its share of the letters.

The script of a letter is the first word of its name in Unicode's table, which Python has. Of what is written
in kana and Chinese characters together the code is Jpan, where kana are a twentieth of these or more.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

NONE = "Zyyy"  # of a text without letters, and of letters of scripts that are not here
SCRIPTS = {
    "LATIN": "Latn", "GREEK": "Grek", "CYRILLIC": "Cyrl", "ARMENIAN": "Armn", "HEBREW": "Hebr",
    "ARABIC": "Arab", "SYRIAC": "Syrc", "THAANA": "Thaa", "NKO": "Nkoo", "DEVANAGARI": "Deva",
    "BENGALI": "Beng", "GURMUKHI": "Guru", "GUJARATI": "Gujr", "ORIYA": "Orya", "TAMIL": "Taml",
    "TELUGU": "Telu", "KANNADA": "Knda", "MALAYALAM": "Mlym", "SINHALA": "Sinh", "THAI": "Thai",
    "LAO": "Laoo", "TIBETAN": "Tibt", "MYANMAR": "Mymr", "GEORGIAN": "Geor", "HANGUL": "Hang",
    "ETHIOPIC": "Ethi", "CHEROKEE": "Cher", "CANADIAN": "Cans", "OGHAM": "Ogam", "RUNIC": "Runr",
    "KHMER": "Khmr", "MONGOLIAN": "Mong", "HIRAGANA": "Hira", "KATAKANA": "Kana", "BOPOMOFO": "Bopo",
    "CJK": "Hani", "YI": "Yiii", "TIFINAGH": "Tfng", "OL": "Olck", "JAVANESE": "Java", "BALINESE": "Bali",
    "SUNDANESE": "Sund", "BATAK": "Batk", "BUGINESE": "Bugi", "CHAM": "Cham", "MEETEI": "Mtei",
    "LEPCHA": "Lepc", "LIMBU": "Limb", "VAI": "Vaii", "BAMUM": "Bamu", "LISU": "Lisu", "MANDAIC": "Mand",
    "SAMARITAN": "Samr", "COPTIC": "Copt", "GLAGOLITIC": "Glag", "GOTHIC": "Goth", "ADLAM": "Adlm",
    "HANIFI": "Rohg", "OSMANYA": "Osma", "CHAKMA": "Cakm", "TAI": "Tale", "NEWA": "Newa",
}  # fmt: skip
CODES = [NONE, *SCRIPTS.values(), "Jpan"]
_KANA, _HAN, _BOTH = (CODES.index("Hira"), CODES.index("Kana")), CODES.index("Hani"), CODES.index("Jpan")
KANA = 0.05  # of kana and Chinese characters together


class Script(Operator):
    """Labels each document with the script of most of its letters, and drops what is not wanted."""

    kind: Literal["script"] = Field("script", description="Labels documents with their script.")
    keep: list[str] | None = Field(
        None, description="ISO 15924 codes that stay (Latn, Cyrl, ...); null: all."
    )
    min_share: float = Field(0.0, ge=0, le=1, description="Least share of the letters in that script.")

    def columns(self) -> dict[str, str]:
        return {"script": "string", "script_share": "double"}

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        best, share = scripts(pages)
        labels = np.array(CODES, object)[best]
        wanted = np.array([self.keep is None or code in self.keep for code in CODES])[best]
        reason = np.where(~wanted, 0, np.where(share < self.min_share, 1, -1)).astype(np.int16)
        told = {"script": labels, "script_share": share.round(6)}
        limit = np.full(len(pages), self.min_share)
        return Verdicts(["another script", "mixed scripts"], reason, share, limit, told)


def scripts(pages: Pages) -> tuple[np.ndarray, np.ndarray]:
    """Per document: the place in CODES of the script with most letters, and its share of all letters."""
    kinds = np.take(_table(), pages.codes, mode="clip")
    letters = np.flatnonzero(kinds)
    document = np.searchsorted(pages.ends, letters)
    counts = np.bincount(document * len(CODES) + kinds[letters], minlength=len(pages) * len(CODES))
    counts = counts.reshape(len(pages), len(CODES))
    total = counts.sum(axis=1)
    kana = counts[:, _KANA].sum(axis=1)
    together = kana + counts[:, _HAN]
    japanese = kana >= np.maximum(KANA * together, 1)
    counts[japanese, _BOTH] = together[japanese]
    counts[np.ix_(japanese, [*_KANA, _HAN])] = 0
    best = counts.argmax(axis=1)
    share = counts[np.arange(len(pages)), best] / np.maximum(total, 1)
    return best, share


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """uint8 per code point: the place of a letter's script in CODES; 0 for what is no letter of one."""
    places = {name: place for place, name in enumerate(SCRIPTS, 1)}
    table = np.zeros(glyphs.LIMIT, np.uint8)
    for code in range(min(glyphs.LIMIT, 0x20000)):
        letter = chr(code)
        if letter.isalpha() and (name := unicodedata.name(letter, "")):
            table[code] = places.get(name.partition(" ")[0], 0)
    table[0x20000:0x32400] = places["CJK"]  # the further planes hold nothing else
    return table
