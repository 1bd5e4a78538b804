"""Stretches of 50 words or more that stand earlier in the corpus are cut out (Lee et al. 2021, arXiv
2107.06499, section 4.1: exact substrings of 50 tokens; RefinedWeb, arXiv 2306.01116, section G.2.3).

A stretch of n words is a repeat exactly when each of its windows of 50 is one, so windows are compared, not
suffixes: each has a 64-bit hash, and equal hashes are found by sorting. Windows never reach over the ends of
documents. Tokens here are words of `Pages`; the paper's are of its byte-pair vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.room import Room, ranged, room_of

EACH = 80  # bytes a window while one range of hashes is sorted


class RepeatedStretches(Barrier):
    """Keeps the first of equal stretches of words and cuts out the others; a document with little left goes.

    9 bytes a word on disk, and 16 more while they are sorted if they do not fit in memory.
    """

    source: ClassVar[str] = "Lee et al. 2021, arXiv 2107.06499, section 4.1"
    ours: ClassVar[tuple[str, ...]] = ("min_left",)

    kind: Literal["repeated-stretches"] = Field(
        "repeated-stretches", description="Exact duplicates of stretches of words over the whole corpus."
    )
    words: int = Field(50, ge=2, description="Words from which a stretch counts.")
    min_left: float = Field(
        0.25, ge=0, le=1, description="Documents of whose characters a smaller share is left go."
    )

    def keys(self, pages: Pages) -> Keys:
        starts, rows = self._windows(pages)
        return {"rows": rows, "hashes": pages.words.sequence.of(starts, starts + self.words)}

    def _windows(self, pages: Pages) -> tuple[np.ndarray, np.ndarray]:
        """int64: the first word of each window, and the number of windows of each document."""
        return windows(pages.words.first, self.words)

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """again: bool per window, whether an equal one stands earlier."""
        room = room_of(keys)
        rows = room.whole("rows", keys["rows"], np.int64)
        return {"rows": rows, "again": repeated(keys["hashes"], int(rows.sum()), room)}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        words = pages.words
        starts, _ = self._windows(pages)
        # A word goes when one of the windows that it is in stands earlier.
        gone = covered(len(words), starts[settled["again"]], self.words)
        size = len(pages)
        reason, left = np.full(size, -1, np.int16), np.ones(size)
        texts: list[str] | None = None
        stretches = characters = 0
        for number in np.flatnonzero(words.sums(gone)).tolist():
            text, found = self._without(pages, gone, number)
            left[number] = len(text) / max(len(pages.texts[number]), 1)
            if left[number] < self.min_left or not text:
                reason[number] = 0
                continue
            stretches += found
            characters += len(pages.texts[number]) - len(text)
            texts = list(pages.texts) if texts is None else texts
            texts[number] = text
        counts = {"repeated stretches": stretches, "repeated characters": characters} if stretches else {}
        limits = np.full(size, self.min_left)
        return Verdicts(["little but repeats"], reason, left, limits, texts=texts, counts=counts)

    def _without(self, pages: Pages, gone: np.ndarray, number: int) -> tuple[str, int]:
        """A document without the words that go, and how many stretches these were."""
        words, text, base = pages.words, pages.texts[number], int(pages.begins[number])
        low, high = int(words.first[number]), int(words.first[number + 1])
        marks = np.concatenate([[False], gone[low:high], [False]])
        changes = np.flatnonzero(marks[1:] != marks[:-1])
        pieces, at = [], 0
        for begin, end in zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True):
            pieces.append(text[at : int(words.begins[low + begin]) - base].rstrip(" "))
            at = int(words.ends[low + end - 1]) - base
        pieces.append(text[at:])
        return "".join(pieces).strip(), len(changes) // 2


def windows(first: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """int64: where each run of `width` pieces within a document begins, and how many each document has.

    first [documents + 1]: where each document's pieces begin.
    """
    rows = np.maximum(np.diff(first) - width + 1, 0)
    offsets = np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)
    return np.repeat(first[:-1], rows) + offsets, rows


def covered(size: int, starts: np.ndarray, width: int) -> np.ndarray:
    """bool [size]: which pieces are in one of the windows of `width` that begin at `starts`."""
    edges = np.zeros(size + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + width, -1)
    gone: np.ndarray = np.cumsum(edges[:-1]) > 0
    return gone


def repeated(hashes: Any, count: int, room: Room) -> np.ndarray:
    """bool per value of a column of `count` hashes: whether an equal one stands before it."""
    again = room.array("again", count, bool)
    for each in ranged(hashes, room, EACH, "windows"):
        again[each.places[each.before() > 0]] = True
    return again
