"""Web pages become texts, in the workers: finding the main text is dearer than reading the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shunter.data import guarded
from shunter.data.cleaning import normalise
from shunter.data.curation.operators import Barrier, Facts, Keys, Operator, Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.room import parts_of, ranged, room_of
from shunter.data.readers import MAX_PAGE_BYTES


class Extract(Operator):
    """Finds the main text of documents that are web pages; others pass. A `curate` job adds it by itself.

    What other documents meet when they are read, pages meet here: cleaning and the limits of length. Pages
    that take too long leave: the one verdict of a chain that hangs on how fast the machine is.
    """

    kind: Literal["extract"] = Field("extract", description="Markup to main text.")
    normalise: bool = Field(True, description="Clean the text as the job does.")
    min_chars: int = Field(1, ge=0, description="Shorter texts go.")
    max_chars: int = Field(10_000_000, ge=1, description="Longer texts go.")
    seconds: float = Field(guarded.SECONDS, gt=0, description="Pages that take more processor time go.")
    broken: bool = Field(False, description="Controls stay that `repair-text` uses after it.")

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        reason, value, limit = np.full(size, -1, np.int16), np.zeros(size), np.zeros(size)
        texts, counts = list(pages.texts), Counter[str]()
        told: list[dict[str, str]] = [{} for _ in range(size)]
        methods = facts["extract"].tolist() if size else []
        for place, method in enumerate(methods):
            if not method:
                continue
            markup = len(texts[place])
            if markup > MAX_PAGE_BYTES:
                reason[place], value[place], limit[place] = 4, markup, MAX_PAGE_BYTES
                continue
            found = guarded.extract(texts[place], method, self.seconds)
            text = normalise(found.text, self.broken) if self.normalise else found.text
            counts[f"pages by {found.by}"] += 1
            texts[place] = text
            length = len(text)
            for number, fails, much, bound in (
                (5, found.late, self.seconds, self.seconds),
                (0, bool(found.error), length, 0),
                (1, not text, length, 0),
                (2, length < self.min_chars, length, self.min_chars),
                (3, length > self.max_chars, length, self.max_chars),
            ):
                if fails:
                    reason[place], value[place], limit[place] = number, much, bound
                    told[place] = {"error": found.error} if found.error else {}
                    break
        return Verdicts(REASONS, reason, value, limit, texts=texts, counts=dict(counts), told=told)


REASONS = [
    "the extractor failed", "no main text", "too short", "too long", "too much markup", "took too long",
]  # fmt: skip


EACH = 96  # bytes a document while one range of digests is sorted


class ExactDuplicates(Barrier):
    """Keeps the first of documents whose texts are equal. 24 bytes a document on disk."""

    kind: Literal["exact-duplicates"] = Field("exact-duplicates", description="Equal texts, but the first.")

    def keys(self, pages: Pages) -> Keys:
        digests = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16) for text in pages.texts
        ]
        both = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64).reshape(-1, 2)
        return {"high": both[:, 0], "low": both[:, 1]}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """root: int64 per document, the number of the first that is equal."""
        room = room_of(keys)
        number = room.whole("number", keys["number"], np.int64)
        low = room.whole("low", keys["low"], np.uint64)
        root = room.array("root", len(number), np.int64)
        left: list[np.ndarray] = []  # places of which another text has the first half of the digest
        for each in ranged(keys["high"], room, EACH, "equal"):
            first = each.first()
            same = low[first] == low[each.places]
            root[each.places[same]] = number[first[same]]
            left.append(each.places[~same])
        _settle_rest(keys["high"], low, number, root, np.sort(np.concatenate([np.zeros(0, np.int64), *left])))
        return {"root": root}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        root, zeros = settled["root"], np.zeros(len(pages))
        reason = np.where(root == settled["number"], -1, 0).astype(np.int16)
        return Verdicts(["duplicate"], reason, zeros, zeros, of=np.where(reason < 0, -1, root))


def _settle_rest(
    high: Any, low: np.ndarray, number: np.ndarray, root: np.ndarray, places: np.ndarray
) -> None:
    """The roots of the documents at these places, in rising order, one by one: hardly ever is there one."""
    if not len(places):
        return
    known: dict[tuple[int, int], int] = {}
    begin = 0
    for part in parts_of(high):
        for place in places[
            np.searchsorted(places, begin) : np.searchsorted(places, begin + len(part))
        ].tolist():
            both = int(part[place - begin]), int(low[place])
            root[place] = number[known.setdefault(both, place)]
        begin += len(part)
