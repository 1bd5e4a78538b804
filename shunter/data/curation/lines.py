"""Lines that are no text: of symbols alone, or junk by their letters, words, and how often they stand."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Operator, Rule, Verdicts, decide, ratio
from shunter.data.curation.pages import Lines, Pages, Prefix, lowered
from shunter.data.curation.repeats import groups, keys_of

STOPWORDS = "the a an and or of to in is are was were be it that this for on with as at by from"
_ADDRESS = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'\])}]*[^\s<>\"'\])}.,;:!?]|\bwww\.[^\s<>\"'\])}]*[\w/]")
# Letters of base64 in a row that no word and no path has: small and capital ones and digits among them.
CODED = 64
_CODED = re.compile(
    rf"(?<![\w+/=])(?=[\w+/]{{0,60}}\d)(?=[\w+/]{{0,60}}[a-z])(?=[\w+/]{{0,60}}[A-Z])[\w+/]{{{CODED},}}={{0,2}}",
    re.A,
)


class SymbolLines(Operator):
    """Lines of nothing but some symbols and spaces go; something else stands once for a run of them."""

    source: ClassVar[str] = "FineWeb2, arXiv 2506.20920: its pipeline, by datatrove's SymbolLinesFormatter"

    kind: Literal["symbol-lines"] = Field("symbol-lines", description="Lines of symbols alone.")
    symbols: list[str] | None = Field(["|"], description="The symbols; null: all punctuation.")
    instead: str = Field("\n", description="The line that stands for a run of them; empty: none.")

    @field_validator("symbols")
    @classmethod
    def _single(cls, symbols: list[str] | None) -> list[str] | None:
        for symbol in symbols or ():
            if len(symbol) != 1:
                raise ValueError(f"{symbol!r} is no single character")
        return symbols

    def judge(self, pages: Pages) -> Verdicts:
        if self.symbols is None:
            wanted = (pages.flags & (glyphs.SOLID | glyphs.SPACE)) == 0
        else:
            wanted = np.isin(pages.codes, [ord(symbol) for symbol in self.symbols])
        lines = pages.lines
        others = _inside(lines, np.flatnonzero(~wanted & (pages.codes != 0x20)))
        gone = (others == 0) & ~lines.blank
        texts: list[str] | None = None
        for number in np.flatnonzero(lines.sums(gone)).tolist():
            texts = list(pages.texts) if texts is None else texts
            texts[number] = self._without(texts[number], gone[lines.first[number] : lines.first[number + 1]])
        return _edited(len(pages), texts, {"lines of symbols": int(gone.sum())})

    def _without(self, text: str, gone: np.ndarray) -> str:
        left: list[str] = []
        before = False
        for line, out in zip(text.split("\n"), gone.tolist(), strict=True):
            if not out:
                left.append(line)
            elif not before and self.instead:
                left.append(self.instead)
            before = out
        return "\n".join(left)


class JunkLines(Operator):
    """Puts placeholders for addresses and for base64, takes out lines that are junk, and drops documents
    that are short then.

    Junk has many special characters, hardly a stopword, or stands in the document again and again. Lines are
    judged with their placeholders in them; blank ones stay. The stopwords are English: give `words` of the
    texts' language, or `min_stopwords: null`, as hardly a line of another language has one of them.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on cleaning"
    ours: ClassVar[tuple[str, ...]] = ("address", "coded", "words", "least")

    kind: Literal["junk-lines"] = Field("junk-lines", description="Junk lines and placeholders.")
    address: str | None = Field("URL", description="What stands for an address of the web; null: itself.")
    coded: str | None = Field(
        "BASE64", description="What stands for 64 letters of base64 or more; null: itself."
    )
    max_special: float | None = Field(
        0.15,
        ge=0,
        le=1,
        description="Largest share of a line's characters that are no letter, digit or space.",
    )
    min_stopwords: float | None = Field(
        0.05, ge=0, le=1, description="Smallest share of a line's words that are stopwords."
    )
    words: list[str] = Field(STOPWORDS.split(), description="The stopwords, in small letters.")
    least: int = Field(
        4, ge=1, description="Lines of fewer words are not judged by stopwords: headings would go."
    )
    max_times: int | None = Field(5, ge=1, description="Lines that stand more often in the document go.")
    min_chars: int = Field(100, ge=0, description="Documents of which less is left go.")

    @field_validator("words")
    @classmethod
    def _small(cls, words: list[str]) -> list[str]:
        for word in words:
            if word != word.lower():
                raise ValueError(f"{word!r} is not in small letters, so no word would be it")
        return words

    def judge(self, pages: Pages) -> Verdicts:
        counts: dict[str, int] = {}
        texts = list(pages.texts)
        addressed = [number for number, text in enumerate(texts) if "://" in text or "www." in text]
        for name, pattern, instead, where in (
            ("addresses", _ADDRESS, self.address, addressed),
            ("runs of base64", _CODED, self.coded, _long_runs(pages)),
        ):
            for number in where if instead is not None else ():
                texts[number], found = pattern.subn(lambda _, put=instead: put, texts[number])  # type: ignore[misc]
                counts[name] = counts.get(name, 0) + found
        changed = Pages(texts) if any(counts.values()) else pages  # whose words may be known already
        gone = self._junk(changed, counts)
        lines = changed.lines
        for number in np.flatnonzero(lines.sums(gone)).tolist():
            out = gone[lines.first[number] : lines.first[number + 1]].tolist()
            left = [line for line, junk in zip(texts[number].split("\n"), out, strict=True) if not junk]
            texts[number] = "\n".join(left).strip("\n")
        if changed is not pages:
            changed.forget()
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        verdicts = decide([Rule("too short", "chars", low=self.min_chars)], {"chars": lengths}, len(pages))
        if texts != list(pages.texts):
            verdicts.texts = texts
        verdicts.counts = {name: count for name, count in counts.items() if count}
        return verdicts

    def _junk(self, pages: Pages, counts: dict[str, int]) -> np.ndarray:
        """bool per line."""
        lines, words, flags = pages.lines, pages.words, pages.flags
        gone = np.zeros(len(lines), bool)

        def drop(name: str, wrong: np.ndarray) -> None:
            fresh = wrong & ~gone & ~lines.blank
            counts[f"lines: {name}"] = int(fresh.sum())
            gone[fresh] = True

        if self.max_special is not None:
            special = np.flatnonzero((flags & (glyphs.WORD | glyphs.SPACE)) == 0)
            drop("special characters", ratio(_inside(lines, special), lines.lengths) > self.max_special)
        if self.min_stopwords is not None:
            letters = (words.kinds & glyphs.WORD) != 0
            small = lowered(pages).of(words.begins, words.ends)
            stops = letters & np.isin(small, _hashes(self.words))
            number, known = _inside(lines, words.begins[letters]), _inside(lines, words.begins[stops])
            poor = ratio(known, number) < self.min_stopwords
            drop("few stopwords", poor & (number >= self.least))
        if self.max_times is not None:
            filled = np.flatnonzero(~lines.blank)
            found = groups(keys_of(lines.hashes[filled], lines.document[filled]), filled)
            often = np.zeros(len(lines), bool)
            often[found.places] = np.repeat(found.sizes > self.max_times, found.sizes)
            drop("said again and again", often)
        return gone


def _long_runs(pages: Pages) -> list[int]:
    """Documents with a run of letters of base64 that is long enough: few, and found fast."""
    table = np.zeros(129, bool)  # of all characters beyond ASCII the last
    table[[code for code in range(128) if chr(code).isalnum() or chr(code) in "_+/"]] = True
    inside = np.take(table, pages.codes, mode="clip")
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    long = begins[ends - begins >= CODED]
    return np.unique(np.searchsorted(pages.ends, long)).tolist()


def _hashes(words: list[str]) -> np.ndarray:
    """uint64 of each, as `lowered` has them."""
    pages = Pages(words)
    small: Prefix = lowered(pages)
    return small.of(pages.begins, pages.ends)


def _inside(lines: Lines, places: np.ndarray) -> np.ndarray:
    """int64 per line: how many of the sorted places are in it."""
    return np.asarray(np.searchsorted(places, lines.ends) - np.searchsorted(places, lines.begins))


def _edited(size: int, texts: list[str] | None, counts: dict[str, int]) -> Verdicts:
    """Nothing leaves; some texts changed."""
    keep, zeros = np.full(size, -1, np.int16), np.zeros(size)
    told = {name: count for name, count in counts.items() if count}
    return Verdicts([], keep, zeros, zeros, texts=texts, counts=told)
