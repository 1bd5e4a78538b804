"""The rules of C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2), line by line."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Operator, Rule, Verdicts, decide
from shunter.data.curation.pages import Lines, Pages

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = tuple(map(ord, ".?!\"'"))
_POLICIES = (
    b"terms of use",
    b"privacy policy",
    b"cookie policy",
    b"uses cookies",
    b"use of cookies",
    b"use cookies",
)


class C4Quality(Operator):
    """Keeps lines that end a sentence and have words enough; drops documents with few sentences left.

    The rules on long words, on policies and on marks of citations are the reference code's. C4's list of bad
    words is another operator, `bad-words`. Lines lose the spaces at their ends.
    """

    source: ClassVar[str] = "C4, arXiv 1910.10683, section 2.2, and its code"

    kind: Literal["c4-quality"] = Field("c4-quality", description="C4's rules, which edit documents.")
    end_marks: bool = Field(
        True, description="Drop lines that do not end in . ? ! or a quote, or end in ... ."
    )
    min_line_words: int = Field(3, ge=0, description="Lines with fewer words, parted by spaces, go.")
    max_word: int | None = Field(1000, ge=1, description="Lines with a longer word go, in characters.")
    min_sentences: int | None = Field(5, ge=0, description="Documents with fewer sentences left go.")
    javascript: bool = Field(True, description="Drop lines that name JavaScript.")
    policies: bool = Field(True, description="Drop lines on cookies, privacy and terms of use.")
    lorem_ipsum: bool = Field(True, description="Drop documents with the printers' dummy text.")
    curly_brackets: bool = Field(
        True, description="Drop documents with a curly bracket in a line that stays."
    )
    citations: bool = Field(True, description="Remove marks such as [1], [edit] and [citation needed].")

    def judge(self, pages: Pages) -> Verdicts:
        texts: list[str] | None = None
        counts: dict[str, int] = {}
        given = pages
        if self.citations and (marked := [i for i in np.flatnonzero(pages.count("[")).tolist()]):
            texts = list(pages.texts)
            for number in marked:
                texts[number], removed = _CITATION.subn("", texts[number])
                counts["citations"] = counts.get("citations", 0) + removed
            pages = Pages(texts)
        lines, (first, last) = pages.lines, pages.lines.edges
        stays = np.ones(len(lines), bool)

        def drop(name: str, wrong: np.ndarray) -> None:
            fresh = stays & wrong
            counts[f"lines: {name}"] = int((fresh & ~lines.blank).sum())
            stays[fresh] = False

        gaps = np.flatnonzero(pages.spaces)
        before = np.append(-1, gaps)[: len(gaps)]
        ends = gaps[gaps > before + 1]  # the space after each run of others
        if self.max_word is not None:
            begins = before[gaps > before + 1] + 1
            drop("a long word", _has(lines, begins[ends - begins > self.max_word]))
        if self.end_marks:
            ended = np.isin(pages.codes[last], _ENDS) & ~lines.dotted
            drop("no end of sentence", ~ended)
        words = np.searchsorted(ends, lines.ends, "right") - np.searchsorted(ends, lines.begins, "right")
        drop("few words", words < self.min_line_words)
        drop("blank", lines.blank)
        raw = b"" if not (self.lorem_ipsum or self.javascript or self.policies) else _lower(pages)
        feeds = np.flatnonzero(np.frombuffer(raw, np.uint8) == 10)
        lorem, brackets = np.zeros(len(lines), bool), np.zeros(len(lines), bool)
        if self.lorem_ipsum:
            lorem = stays & _mentions(raw, feeds, len(lines), (b"lorem ipsum",))
        if self.javascript:
            drop("javascript", _mentions(raw, feeds, len(lines), (b"javascript",)))
        if self.curly_brackets:
            brackets = stays & _has(lines, np.flatnonzero(pages.codes == ord("{")))
        if self.policies:
            drop("policies", _mentions(raw, feeds, len(lines), _POLICIES))
        measures = {
            "lorem": lines.sums(lorem),
            "brackets": lines.sums(brackets),
            "sentences": lines.sums(np.where(stays, sentences(pages), 0)),
        }
        verdicts = decide(
            [
                Rule("lorem ipsum", "lorem", high=0),
                Rule("curly brackets", "brackets", high=0),
                Rule("too few sentences", "sentences", low=self.min_sentences),
            ],
            measures,
            len(pages),
        )
        cut = stays & ((first > lines.begins) | (last + 1 < lines.ends))
        changed = (lines.sums(~stays | cut) > 0) & verdicts.kept
        if changed.any():
            texts = list(pages.texts) if texts is None else texts
            for number in np.flatnonzero(changed).tolist():
                texts[number] = _joined(pages, number, stays)
        verdicts.texts, verdicts.counts = texts, {name: n for name, n in counts.items() if n}
        if pages is not given:
            pages.forget()
        return verdicts


def sentences(pages: Pages) -> np.ndarray:
    """int64 per line: sentences, at least one. One ends where, among the marks between two words of a
    line, one is an end of sentence."""
    words, lines = pages.words, pages.lines
    found = np.ones(len(lines), np.int64)
    if not len(words):
        return found
    letters = pages.of_letters[words.begins]
    marks = np.cumsum(~letters & ((pages.flags[words.begins] & glyphs.TERMINAL) != 0))
    line = np.searchsorted(lines.begins, words.begins, "right") - 1
    inside = np.flatnonzero(letters)
    ended = (np.diff(marks[inside]) > 0) & (line[inside[1:]] == line[inside[:-1]])
    return found + np.bincount(line[inside[1:][ended]], minlength=len(lines))


def _has(lines: Lines, places: np.ndarray) -> np.ndarray:
    """bool per line: one of the sorted places is in it."""
    return np.asarray(np.searchsorted(places, lines.ends) > np.searchsorted(places, lines.begins))


def _lower(pages: Pages) -> bytes:
    """All documents in UTF-8 with small Latin letters, a line feed after each."""
    return ("\n".join(pages.texts) + "\n").encode("utf-8", "surrogatepass").lower()


def _mentions(raw: bytes, feeds: np.ndarray, size: int, phrases: tuple[bytes, ...]) -> np.ndarray:
    """bool per line: one of the phrases is in it. feeds: places of line feeds in `raw`."""
    places = [found.start() for phrase in phrases for found in re.finditer(re.escape(phrase), raw)]
    mentioned = np.zeros(size, bool)
    mentioned[np.searchsorted(feeds, np.asarray(places, np.int64))] = True
    return mentioned


def _joined(pages: Pages, number: int, stays: np.ndarray) -> str:
    """The lines of a document that stay, without the spaces around them."""
    inside = stays[pages.lines.first[number] : pages.lines.first[number + 1]].tolist()
    parts = pages.texts[number].split("\n")
    return "\n".join(line.strip() for line, stay in zip(parts, inside, strict=True) if stay).strip()
