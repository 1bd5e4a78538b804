"""Text that was decoded wrongly once is brought back, and how often is said.

UTF-8 that was read as another encoding ("cafÃ©" for "café") is seen by its form: a letter that stands for the
first byte of a character of UTF-8, and after it as many as it announces of those that stand for later bytes.
In text that was read rightly such runs are rare, and those that decode rarer. ftfy knows more ways in which
text breaks, for more time (Speer 2019).
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import MissingExtra
from shunter.data.cleaning import LATER, normalise
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

ENCODINGS = ("cp1252", "cp1251", "cp1250")
ROUNDS = 3  # text that was broken twice is mended twice
_ENTITY = re.compile(r"&(?:#\d{2,7}|#x[0-9a-fA-F]{2,6}|[a-zA-Z]{2,8}\d{0,2});")


class RepairText(Operator):
    """Mends text that was decoded wrongly, and entities of markup in text that has none."""

    kind: Literal["repair-text"] = Field("repair-text", description="Mends mojibake and entities.")
    by: Literal["own", "ftfy"] = Field("own", description="ftfy: its `fix_text`; needs the extra `repair`.")
    entities: bool = Field(True, description="own: `&eacute;` becomes é in texts without `<`.")
    normalise: bool = Field(
        False, description="Clean what was mended as the job does, which sets this; leave it out."
    )

    def ready(self) -> None:
        if self.by == "ftfy" and find_spec("ftfy") is None:
            raise MissingExtra("ftfy", extra="repair", purpose="repair-text with `by: ftfy`")

    def columns(self) -> dict[str, str]:
        return {"repairs": "int32"}

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        texts, counts = list(pages.texts), {"repaired places": 0, "entities": 0}
        repairs = np.zeros(len(texts), np.int32)
        for place, text in enumerate(texts):
            if self.by == "ftfy":
                import ftfy

                mended = ftfy.fix_text(text)
                repairs[place] = mended != text
                counts["repaired places"] += int(repairs[place])
                texts[place] = self._cleaned(mended, text)
                continue
            mended, runs = repaired(text)
            found = 0
            if self.entities and "&" in mended and "<" not in mended:
                found = sum(html.unescape(entity) != entity for entity in _ENTITY.findall(mended))
                mended = _ENTITY.sub(lambda match: html.unescape(match[0]), mended)
            texts[place], repairs[place] = self._cleaned(mended, text), runs + found
            counts["repaired places"] += runs
            counts["entities"] += found
        keep, zeros = np.full(len(texts), -1, np.int16), np.zeros(len(texts))
        counts = {name: count for name, count in counts.items() if count}
        return Verdicts([], keep, zeros, zeros, {"repairs": repairs}, texts=texts, counts=counts)

    def _cleaned(self, mended: str, text: str) -> str:
        """What was mended is cleaned anew, and controls that no mending has used go now."""
        if self.normalise and (mended != text or LATER.search(mended)):
            return normalise(mended)
        return mended


def repaired(text: str) -> tuple[str, int]:
    """The text with its broken lines mended, and how many characters became one.

    A line is mended when most of its letters beyond ASCII stand in runs that decode.
    """
    if text.isascii():
        return text, 0
    total = 0
    for _ in range(ROUNDS):
        lines, changed = text.split("\n"), 0
        for place, line in enumerate(lines):
            if not line.isascii():
                lines[place], found = _line(line)
                changed += found
        if not changed:
            break
        text, total = "\n".join(lines), total + changed
    return text, total


def _line(line: str) -> tuple[str, int]:
    for encoding in ENCODINGS:
        pattern, to_byte = _form(encoding)
        spans: list[tuple[int, int, str]] = []
        for found in pattern.finditer(line):
            try:
                right = bytes(to_byte[letter] for letter in found[0]).decode("utf-8")
            except UnicodeDecodeError:
                continue
            spans.append((found.start(), found.end(), right))
        if not spans:
            continue
        inside = sum(end - begin for begin, end, _ in spans)
        beyond = sum(letter > "\x7f" for letter in line)
        if inside < 0.8 * beyond or (encoding != "cp1252" and len(spans) < 3):
            continue
        pieces, at = [], 0
        for begin, end, right in spans:
            pieces += [line[at:begin], right]
            at = end
        return "".join([*pieces, line[at:]]), len(spans)
    return line, 0


@lru_cache(maxsize=len(ENCODINGS))
def _form(encoding: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """What UTF-8 looks like through an encoding, and the byte for each of its letters. Bytes that the
    encoding does not have stand for themselves, as browsers read them."""
    letters = {}
    for byte in range(0x80, 0x100):
        try:
            letters[byte] = bytes([byte]).decode(encoding)
        except UnicodeDecodeError:
            letters[byte] = chr(byte)

    def some(low: int, high: int) -> str:
        # Below 0xA0 a byte may also have been read as the control of that number, as Latin-1 has it.
        both = (letters[byte] + (chr(byte) if byte < 0xA0 else "") for byte in range(low, high))
        return "[" + re.escape("".join(both)) + "]"

    later = some(0x80, 0xC0)
    form = f"{some(0xC2, 0xE0)}{later}|{some(0xE0, 0xF0)}{later}{{2}}|{some(0xF0, 0xF5)}{later}{{3}}"
    known = {chr(byte): byte for byte in range(0x80, 0xA0)}
    return re.compile(form), {**known, **{letter: byte for byte, letter in letters.items()}}
