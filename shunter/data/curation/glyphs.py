"""What each character is: one byte of flags a code point, and the form that near-duplicates share."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np

SPACE, WORD, DIGIT, ALPHA, SOLID, TERMINAL, SINGLE = (1 << bit for bit in range(7))
LIMIT = 0x110000
_ASSIGNED = 0x33480  # no letter, number or mark stands above this, but for tags and private use

# Characters that end a sentence in some script: Unicode's Sentence_Terminal and the full stops that
# datatrove 0.10.1 adds (utils/text.py, TERMINAL_PUNCTUATION), as code points.
_TERMINAL = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 "
    "17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f "
    "203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f "
    "a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 "
    "10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c "
    "112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c "
    "11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"
)
# Punctuation and controls: what CCNet strips, as datatrove's PUNCTUATION has it.
_PUNCTUATION = (
    "0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 "
    "3008-300d 3010-3011 ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e"
)
# Scripts written without spaces: each of their letters is a word, as no dictionary is at hand.
_UNSPACED = (
    "e00-eff 1000-109f 1780-17ff 19e0-19ff 3005-3007 3021-3029 3040-30ff 31f0-31ff 3400-4dbf 4e00-9fff "
    "f900-faff ff66-ff9f 1b000-1b16f 20000-2fa1f 30000-323af"
)


@lru_cache(maxsize=1)
def flags() -> np.ndarray:
    """uint8 per code point. Read only.

    SPACE: whitespace. WORD: letter, mark, number or underscore. ALPHA: a letter. SOLID: neither space nor
    punctuation. TERMINAL: ends a sentence. SINGLE: a letter of a script that has no spaces.
    """
    table = np.zeros(LIMIT, np.uint8)
    for code in range(_ASSIGNED):
        kind = unicodedata.category(chr(code))
        if kind[0] in "LMN":
            table[code] = WORD | (ALPHA if kind[0] == "L" else DIGIT if kind == "Nd" else 0)
    table[ord("_")] = WORD
    spaces = [code for code in range(0x3001) if chr(code).isspace()]
    table[spaces] = SPACE
    solid = np.ones(LIMIT, bool)
    solid[[*spaces, *_codes(_PUNCTUATION), *_codes(_TERMINAL)]] = False
    table |= solid.astype(np.uint8) * np.uint8(SOLID)
    table[_codes(_TERMINAL)] |= TERMINAL
    unspaced = np.zeros(LIMIT, bool)
    unspaced[_codes(_UNSPACED)] = True
    table |= (unspaced & ((table & ALPHA) != 0)).astype(np.uint8) * np.uint8(SINGLE)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=1)
def folded() -> np.ndarray:
    """uint32 per code point: lower case without diacritics, "0" for digits, a space for punctuation and
    spaces, 0 for marks, which vanish. Read only. (FineWeb2, section 3.3: what MinHash compares.)

    One code point becomes one: a letter whose lower case is longer keeps its first, and one that is
    more than a letter and its diacritics stays whole.
    """
    table = np.arange(LIMIT, dtype=np.uint32)
    kinds = flags()
    for code in range(0x41, _ASSIGNED):
        if kinds[code] & ALPHA:
            first = chr(code).lower()[0]
            parts = unicodedata.normalize("NFD", first)
            # Of a Hangul syllable what follows is no diacritic: it is the vowel.
            bare = all(unicodedata.category(part) == "Mn" for part in parts[1:])
            table[code] = ord(parts[0] if bare else first)
        elif unicodedata.category(chr(code)) == "Mn":
            table[code] = 0
    table[(kinds & DIGIT) != 0] = ord("0")
    table[(kinds & SOLID) == 0] = ord(" ")
    table[[ord(c) for c in "²³¹"]] = ord("0")
    table.setflags(write=False)
    return table


@lru_cache(maxsize=1)
def small() -> np.ndarray:
    """uint32 per code point: the small letter, where that is one character. Read only."""
    table = np.arange(LIMIT, dtype=np.uint32)
    for code in np.flatnonzero(flags() & ALPHA).tolist():
        lower = chr(code).lower()
        if len(lower) == 1:
            table[code] = ord(lower)
    table.setflags(write=False)
    return table


def terminals() -> list[str]:
    """Every character that ends a sentence."""
    return [chr(code) for code in _codes(_TERMINAL)]


def punctuation() -> list[str]:
    """Every character that is not SOLID and no space."""
    return [chr(code) for code in np.flatnonzero((flags() & (SOLID | SPACE)) == 0).tolist()]


def _codes(ranges: str) -> list[int]:
    found: list[int] = []
    for part in ranges.split():
        low, _, high = part.partition("-")
        found += range(int(low, 16), int(high or low, 16) + 1)
    return found
