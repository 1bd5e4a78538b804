"""Edit programs: what to delete of a text, by line and by string (RefineX, arXiv 2507.03253, section 3).

    remove_lines(3,5)            whole lines, both ends included, counted from 0
    remove_str(2,"Share this")   a string of one line, if it stands there exactly once
    keep_all()                   nothing

A program can only delete, so what is left is a subsequence of the text. All calls mean the original's lines,
so their order does not matter; what they delete is united. A call that is malformed, out of range or not
unique is skipped and counted. Programs are read by a grammar of these three forms alone; spaces and the names
of arguments may be in them. They are written without, so that a number is the same token wherever it stands.
A word may still come about where a string is cut out of one: `whole_words` leaves such strings standing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

_LINES = re.compile(
    r"remove_lines\(\s*(?:start_line\s*=\s*)?(\d{1,9})\s*,\s*(?:end_line\s*=\s*)?(\d{1,9})\s*\)"
)
_STRING = re.compile(
    r"remove_str\(\s*(?:line\s*=\s*)?(\d{1,9})\s*,\s*(?:del_str\s*=\s*)?(\"(?:[^\"\\]|\\.)*\")\s*\)"
)
_KEEP = re.compile(r"keep_all\(\s*\)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class RemoveLines:
    """Lines first to last, included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"remove_lines({self.first},{self.last})"


@dataclass(frozen=True)
class RemoveString:
    """One string of one line."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"remove_str({self.line},{json.dumps(self.text, ensure_ascii=False)})"


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
    """text: what is left; empty: the document goes. applied: the calls that were executed, in their order.
    skipped: others. deleted: characters."""

    text: str
    applied: list[Call]
    skipped: int
    deleted: int

    @property
    def executed(self) -> int:
        """Calls."""
        return len(self.applied)


def execute(text: str, calls: Sequence[Call], *, whole_words: bool = False) -> Edited:
    """Run calls over a text. Lines are parted by line feeds alone; a line that goes takes its line feed
    along, lines at the end that before them.

    whole_words: strings that would cut a word, or join two, are skipped; so every word that is left stood in
    the text. It is looked at after all strings are united, so that no order matters.
    """
    bounds = lines_of(text)
    kept = np.ones(len(text), bool)
    whole = np.zeros(len(bounds), bool)
    applied: dict[int, Call] = {}  # by its number
    strings: dict[int, tuple[int, tuple[int, int]]] = {}  # line and place
    for number, call in enumerate(calls):
        if isinstance(call, RemoveLines):
            if call.first <= call.last < len(bounds):
                applied[number] = call
                whole[call.first : call.last + 1] = True
        elif (span := _place(text, bounds, call)) is not None:
            applied[number] = call
            strings[number] = call.line, span
            kept[span[0] : span[1]] = False
    if whole_words:
        for low, high in _cutting(text, bounds, whole, list(strings.values())):
            kept[low:high] = True
            for number, (_, (begin, end)) in strings.items():
                if low <= begin and end <= high:
                    del applied[number]
    for number in np.flatnonzero(whole).tolist():
        low, high = bounds[number]
        kept[low : high + 1] = False
    staying = np.flatnonzero(~whole)
    if len(staying) and staying[-1] < len(bounds) - 1:
        kept[bounds[staying[-1]][1]] = False
    left = "".join(text[low:high] for low, high in runs(kept))
    return Edited(left, list(applied.values()), len(calls) - len(applied), len(text) - len(left))


def shifted(calls: Sequence[Call], lines: int) -> list[Call]:
    """The calls of a chunk that begins `lines` lines into the document."""
    return [
        RemoveLines(call.first + lines, call.last + lines)
        if isinstance(call, RemoveLines)
        else RemoveString(call.line + lines, call.text)
        for call in calls
    ]


def within(calls: Sequence[Call], first: int, lines: int) -> list[Call]:
    """What of the calls falls to a chunk of `lines` lines that begins at line `first`, in its own
    numbers: `shifted` turned round."""
    found: list[Call] = []
    for call in calls:
        if isinstance(call, RemoveString):
            if first <= call.line < first + lines:
                found.append(RemoveString(call.line - first, call.text))
            continue
        low, high = max(call.first, first), min(call.last, first + lines - 1)
        if low <= high:
            found.append(RemoveLines(low - first, high - first))
    return found


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
    """The text with its line numbers in front, as a model reads it: a model that counts lines miscounts.

    Written as a program writes them, so that a small model has only to copy.
    """
    return "\n".join(f"[{number}] {line}" for number, line in enumerate(text.split("\n")))


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return _WORD.findall(text)


def lines_of(text: str) -> list[tuple[int, int]]:
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


def _cutting(
    text: str,
    bounds: list[tuple[int, int]],
    whole: np.ndarray,
    strings: Sequence[tuple[int, tuple[int, int]]],
) -> list[tuple[int, int]]:
    """Runs of deleted strings, in lines that stay, that begin or end inside a word or join two."""
    found = []
    for line in sorted({line for line, _ in strings if not whole[line]}):
        low, high = bounds[line]
        gone = np.zeros(high - low, bool)
        for number, (begin, end) in strings:
            if number == line:
                gone[begin - low : end - low] = True
        for begin, end in runs(gone):
            before = _in_word(text[low + begin - 1 : low + begin]) if begin else False
            after = _in_word(text[low + end : low + end + 1]) if low + end < high else False
            first, last = _in_word(text[low + begin]), _in_word(text[low + end - 1])
            if (before and first) or (last and after) or (before and after):
                found.append((low + begin, low + end))
    return found


def _in_word(character: str) -> bool:
    return _WORD.fullmatch(character) is not None


def runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of the runs of true."""
    padded = np.concatenate([[False], chosen, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class EditRules(Operator):
    """Deletes lines and strings that patterns name, as an edit program; drops a document that is left empty.

    RefineX lets a small model write the programs; here rules do. Both are executed by the same code.
    """

    source: ClassVar[str] = "RefineX, arXiv 2507.03253, section 3 (programs, here written by rules)"

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
