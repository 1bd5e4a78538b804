"""Edit programs: what to delete of a text, by line and by string (RefineX, arXiv 2507.03253, section 3).

    remove_lines(3, 5)            whole lines, both ends included, counted from 0
    remove_str(2, "Share this")   a string of one line, if it stands there exactly once
    keep_all()                    nothing

A program can only delete, so what is left is a subsequence of the text: no word is ever invented. All calls
mean the original's lines, so their order does not matter; what they delete is united. A call that is
malformed, out of range or not unique is skipped and counted. Programs are read by a grammar of these three
forms alone.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

CHANGED, DELETED = 20, 10  # characters: from here on a rewriting is no deletion; below this it is no edit
_LINES = re.compile(
    r"remove_lines\(\s*(?:start_line\s*=\s*)?(\d{1,9})\s*,\s*(?:end_line\s*=\s*)?(\d{1,9})\s*\)"
)
_STRING = re.compile(
    r"remove_str\(\s*(?:line\s*=\s*)?(\d{1,9})\s*,\s*(?:del_str\s*=\s*)?(\"(?:[^\"\\]|\\.)*\")\s*\)"
)
_KEEP = re.compile(r"keep_all\(\s*\)")


@dataclass(frozen=True)
class RemoveLines:
    """Lines first to last, included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"remove_lines({self.first}, {self.last})"


@dataclass(frozen=True)
class RemoveString:
    """One string of one line."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"remove_str({self.line}, {json.dumps(self.text, ensure_ascii=False)})"


Call = RemoveLines | RemoveString


def parse(program: str) -> tuple[list[Call], int]:
    """The calls of a program, one a line, and how many lines were none. `keep_all()` is no call."""
    calls: list[Call] = []
    skipped = 0
    for line in program.split("\n"):
        line = line.strip()
        if not line or _KEEP.fullmatch(line):
            continue
        if found := _LINES.fullmatch(line):
            calls.append(RemoveLines(int(found[1]), int(found[2])))
        elif found := _STRING.fullmatch(line):
            try:
                calls.append(RemoveString(int(found[1]), json.loads(found[2])))
            except ValueError:
                skipped += 1
        else:
            skipped += 1
    return calls, skipped


def written(calls: Sequence[Call]) -> str:
    """The program; `keep_all()` when there is no call."""
    return "\n".join(map(str, calls)) or "keep_all()"


@dataclass(frozen=True)
class Edited:
    """text: what is left; empty: the document goes. executed, skipped: calls. deleted: characters."""

    text: str
    executed: int
    skipped: int
    deleted: int


def execute(text: str, calls: Sequence[Call]) -> Edited:
    """Run calls over a text. Lines are parted by line feeds alone; a line that goes takes its line feed
    along, lines at the end that before them."""
    bounds = _bounds(text)
    kept = np.ones(len(text), bool)
    whole = np.zeros(len(bounds), bool)
    skipped = 0
    for call in calls:
        if isinstance(call, RemoveLines):
            applies = call.first <= call.last < len(bounds)
            whole[call.first : call.last + 1] |= applies
        else:
            span = _place(text, bounds, call)
            applies = span is not None
            if span is not None:
                kept[span[0] : span[1]] = False
        skipped += not applies
    for number in np.flatnonzero(whole).tolist():
        low, high = bounds[number]
        kept[low : high + 1] = False
    staying = np.flatnonzero(~whole)
    if len(staying) and staying[-1] < len(bounds) - 1:
        kept[bounds[staying[-1]][1]] = False
    left = "".join(text[low:high] for low, high in _runs(kept))
    return Edited(left, len(calls) - skipped, skipped, len(text) - len(left))


def shifted(calls: Sequence[Call], lines: int) -> list[Call]:
    """The calls of a chunk that begins `lines` lines into the document."""
    return [
        RemoveLines(call.first + lines, call.last + lines)
        if isinstance(call, RemoveLines)
        else RemoveString(call.line + lines, call.text)
        for call in calls
    ]


def chunks(text: str, chars: int, overlap: int = 0) -> Iterator[tuple[int, str]]:
    """(first line, its text) of chunks of whole lines, of about `chars` characters; each begins `overlap`
    lines before the end of the one before. Where two overlap, what either deletes is deleted."""
    lines = text.split("\n")
    begin = 0
    while True:
        end, size = begin, 0
        while end < len(lines) and (size == 0 or size + len(lines[end]) + 1 <= chars):
            size += len(lines[end]) + 1
            end += 1
        yield begin, "\n".join(lines[begin:end])
        if end == len(lines):
            return
        begin = max(begin + 1, end - overlap)


def numbered(text: str) -> str:
    """The text with its line numbers in front, as a model reads it: a model that counts lines miscounts."""
    lines = text.split("\n")
    width = max(3, len(str(len(lines) - 1)))
    return "\n".join(f"[{number:0{width}}] {line}" for number, line in enumerate(lines))


def distil(original: str, refined: str) -> tuple[list[Call] | None, str]:
    """The program that deletes what an expert deleted, or None, and why.

    Insertions and replacements of 20 characters or more are rewriting: the pair is not used. Smaller ones are
    left undone. One to nine characters deleted are no edit worth learning; none at all is `keep_all()`.
    """
    spans = []
    deleted = 0
    for tag, low, high, begin, end in _difference(original, refined):
        if tag in ("insert", "replace") and max(high - low, end - begin) >= CHANGED:
            return None, "rewritten"
        if tag == "delete":
            spans.append((low, high))
            deleted += high - low
    if not spans:
        return [], ""
    if deleted < DELETED:
        return None, "hardly anything deleted"
    calls = _calls(original, spans)
    kept = np.ones(len(original), bool)
    for low, high in spans:
        kept[low:high] = False
    wanted = "".join(original[low:high] for low, high in _runs(kept))
    if execute(original, calls).text != wanted:
        return None, "not to be said in a program"
    return calls, ""


def new_words(original: str, edited: str) -> float:
    """Words of the edited text that the original has not, by 1,000 words of it."""
    known, words = set(original.split()), edited.split()
    return 1000 * sum(word not in known for word in words) / len(words) if words else 0.0


def _bounds(text: str) -> list[tuple[int, int]]:
    """Begin and end of each line, without its line feed."""
    found, begin = [], 0
    for line in text.split("\n"):
        found.append((begin, begin + len(line)))
        begin += len(line) + 1
    return found


def _place(text: str, bounds: list[tuple[int, int]], call: RemoveString) -> tuple[int, int] | None:
    """Where the string stands, or None when it does not stand once in its line."""
    if call.line >= len(bounds) or not call.text or "\n" in call.text:
        return None
    low, high = bounds[call.line]
    at = text.find(call.text, low, high)
    if at < 0 or text.find(call.text, at + 1, high) >= 0:
        return None
    return at, at + len(call.text)


def _calls(text: str, spans: Sequence[tuple[int, int]]) -> list[Call]:
    """Calls for deleted spans: lines that go with a line feed as a whole, parts of others as strings."""
    gone = np.zeros(len(text) + 1, bool)
    for low, high in spans:
        gone[low:high] = True
    bounds = _bounds(text)
    calls: list[Call] = []
    whole: list[int] = []
    for number, (low, high) in enumerate(bounds):
        feed = gone[high] if high < len(text) else (low > 0 and gone[low - 1])
        if feed and gone[low:high].all():
            whole.append(number)
            continue
        for begin, end in _runs(gone[low:high]):
            calls.append(RemoveString(number, text[low + begin : low + end]))
    for number in whole:
        last = calls[-1] if calls else None
        if isinstance(last, RemoveLines) and last.last == number - 1:
            calls[-1] = RemoveLines(last.first, number)
        else:
            calls.append(RemoveLines(number, number))
    return calls


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of the runs of true."""
    padded = np.concatenate([[False], chosen, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _difference(original: str, refined: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Character operations. By lines first: difflib is quadratic, and most lines are equal."""
    before, after = original.splitlines(keepends=True), refined.splitlines(keepends=True)
    starts = [np.cumsum([0, *map(len, lines)]).tolist() for lines in (before, after)]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        low, begin = starts[0][a], starts[1][c]
        if tag != "replace":
            yield tag, low, starts[0][b], begin, starts[1][d]
            continue
        inner = difflib.SequenceMatcher(None, "".join(before[a:b]), "".join(after[c:d]), autojunk=False)
        for kind, i, j, k, m in inner.get_opcodes():
            yield kind, low + i, low + j, begin + k, begin + m


class EditRules(Operator):
    """Deletes lines and strings that patterns name, as an edit program; drops a document that is left empty.

    RefineX lets a small model write the programs; here rules do. Both are executed by the same code.
    """

    kind: Literal["edit-rules"] = Field("edit-rules", description="Deletes by patterns.")
    lines: list[str] = Field([], description="Regular expressions; a line that one matches whole goes.")
    strings: list[str] = Field(
        [], description="Regular expressions; what they match in a line goes, if it stands there once."
    )

    @field_validator("lines", "strings")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    def program(self, text: str) -> list[Call]:
        """What the patterns would delete."""
        whole = [re.compile(pattern) for pattern in self.lines]
        inside = [re.compile(pattern) for pattern in self.strings]
        calls: list[Call] = []
        for number, line in enumerate(text.split("\n")):
            if any(pattern.fullmatch(line) for pattern in whole):
                calls.append(RemoveLines(number, number))
                continue
            found = {match.group() for pattern in inside for match in pattern.finditer(line)} - {""}
            calls += [RemoveString(number, each) for each in sorted(found)]
        return calls

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        texts = list(pages.texts)
        counts = {"calls": 0, "calls skipped": 0}
        reason = np.full(len(texts), -1, np.int16)
        left = np.ones(len(texts))
        for place, text in enumerate(texts):
            if not (calls := self.program(text)):
                continue
            edited = execute(text, calls)
            counts["calls"] += edited.executed
            counts["calls skipped"] += edited.skipped
            if not edited.text.strip():
                reason[place], left[place] = 0, 0.0
            texts[place] = edited.text
        counts = {name: count for name, count in counts.items() if count}
        return Verdicts(["nothing is left"], reason, left, np.zeros(len(texts)), texts=texts, counts=counts)
