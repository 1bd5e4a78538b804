"""Exact duplicates of paragraphs and lines over a whole corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.room import Room, blocks, inside, parts_of, room_of

EACH = 64  # bytes a paragraph while one range of their digests is sorted
AGAIN, OTHERS, WHOLE = 1, 2, 4
ROUNDS = 64  # even; after so many, documents whose fate still hangs on others' stay


class RepeatedParagraphs(Barrier):
    """Removes paragraphs that stand earlier in the corpus; a document with little but those goes.

    Paragraphs are parted by blank lines (`unit: line`: by line feeds) and compared by 64-bit digests of
    their characters. Of each paragraph the first `times` stay somewhere: a document that goes protects
    nothing, and what repeats itself alone does not go for that.
    """

    kind: Literal["repeated-paragraphs"] = Field(
        "repeated-paragraphs", description="Exact duplicates of paragraphs or lines over the whole corpus."
    )
    unit: Literal["paragraph", "line"] = Field("paragraph", description="What is compared.")
    min_chars: int = Field(40, ge=1, description="Shorter ones are left alone: many are said often.")
    times: int = Field(1, ge=1, description="How often one may stand before the next is removed.")
    min_left: float = Field(
        0.25, ge=0, le=1, description="Documents of whose characters fewer are not of earlier ones go."
    )

    def _parts(self, pages: Pages) -> Any:
        return pages.paragraphs if self.unit == "paragraph" else pages.lines

    def keys(self, pages: Pages) -> Keys:
        """rows, chars: per document, its paragraphs that are long enough and its length; digests, sizes:
        per such paragraph."""
        parts = self._parts(pages)
        long = parts.lengths >= self.min_chars
        chosen = np.flatnonzero(long)
        documents = parts.document[chosen]
        begins = parts.begins[chosen] - pages.begins[documents]
        sizes = parts.lengths[chosen]
        places = zip(documents.tolist(), begins.tolist(), (begins + sizes).tolist(), strict=True)
        digests = [_digest(pages.texts[number][low:high]) for number, low, high in places]
        return {
            "rows": parts.sums(long),
            "chars": pages.lengths,
            "digests": np.array(digests, np.uint64),
            "sizes": sizes.astype(np.uint32),
        }

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """marks: uint8 per paragraph that is long enough; AGAIN: it goes, OTHERS: as it stands in other
        documents, WHOLE: its document goes.

        Whether a document goes hangs on which earlier ones go, so this is found in rounds: each judges with
        what the one before let go. The even ones let go too few at worst, never one that should stay, so
        that is what stands if they do not come to rest.
        """
        room = room_of(keys)
        rows = room.whole("rows", keys["rows"], np.int64)
        chars = room.whole("chars", keys["chars"], np.int64)
        repeats = self._repeats(keys, rows, room)
        going = room.array("going", len(rows), bool)
        for _ in range(ROUNDS):
            removed = room.array("removed", len(rows), np.int64)
            for part in repeats:
                _, others = part.again(going, self.times)
                np.add.at(removed, part.document[others], part.size[others])
            changed = False
            for some in blocks(len(rows)):
                now = (removed[some] > 0) & (_left(removed[some], chars[some]) < self.min_left)
                changed |= not np.array_equal(now, going[some])
                going[some] = now
            if not changed:
                break
        marks = room.array("marks", int(rows.sum()), np.uint8)
        for part in repeats:
            again, others = part.again(going, self.times)
            marks[part.place[again]] = AGAIN
            marks[part.place[others]] = np.where(
                going[part.document[others]], AGAIN | OTHERS | WHOLE, AGAIN | OTHERS
            )
        return {"rows": rows, "marks": marks}

    def _repeats(self, keys: Mapping[str, Any], rows: np.ndarray, room: Room) -> list[Repeats]:
        """The paragraphs that stand more than `times` times, by ranges of their digests."""
        parts = room.parts(int(rows.sum()), EACH)
        found = []
        for part in range(parts):
            digest, *others = _in_range(keys, part, parts)
            order = np.argsort(digest, kind="stable")
            digest = digest[order]
            first = np.ones(len(digest), bool)
            first[1:] = digest[1:] != digest[:-1]
            counts = _runs(first)
            often = np.repeat(counts > self.times, counts)
            kept = Repeats.empty(int(often.sum()), room, part, parts > 1)
            for target, values in zip((kept.place, kept.document, kept.size), others, strict=True):
                target[:] = values[order[often]]
            kept.first[:] = first[often]
            found.append(kept)
        return found

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        parts = self._parts(pages)
        marks = np.zeros(len(parts), np.uint8)
        marks[parts.lengths >= self.min_chars] = settled["marks"]
        gone = marks > 0
        left = _left(parts.sums(np.where(marks & OTHERS, parts.lengths, 0)), pages.lengths)
        reason = np.where(parts.sums((marks & WHOLE) > 0) > 0, 0, -1).astype(np.int16)
        texts = None
        edited = np.flatnonzero((parts.sums(gone) > 0) & (reason < 0))
        if len(edited):
            texts = list(pages.texts)
            for number in edited.tolist():
                texts[number] = self._without(pages, parts, gone, number)
        return Verdicts(
            ["little but repeats"],
            reason,
            left,
            np.full(len(pages), self.min_left),
            texts=texts,
            counts={f"repeated {self.unit}s": int(gone.sum())} if gone.any() else {},
        )

    def _without(self, pages: Pages, parts: Any, gone: np.ndarray, number: int) -> str:
        text, base = pages.texts[number], int(pages.begins[number])
        inside = slice(parts.first[number], parts.first[number + 1])
        places = zip(
            parts.begins[inside].tolist(), parts.ends[inside].tolist(), gone[inside].tolist(), strict=True
        )
        kept = [text[low - base : high - base] for low, high, out in places if not out]
        return ("\n\n" if self.unit == "paragraph" else "\n").join(kept)


@dataclass(frozen=True)
class Repeats:
    """Paragraphs that stand often, those of one digest after another, in order. place: among all paragraphs;
    document: among all documents; size: characters; first: of its digest."""

    place: np.ndarray
    document: np.ndarray
    size: np.ndarray
    first: np.ndarray

    @staticmethod
    def empty(count: int, room: Room, part: int, away: bool) -> Repeats:
        """Arrays to be filled."""
        kinds = (("place", np.int64), ("document", np.int64), ("size", np.int64), ("first", np.bool_))
        return Repeats(*(room.array(f"{name}.{part}", count, kind, away) for name, kind in kinds))

    def again(self, going: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
        """int64: which of these stand after `times` of their digest, their own document's included; and
        which after as many of other documents. Those of other documents that go do not count."""
        stays = ~going[self.document]
        before = np.cumsum(stays) - stays
        before -= np.repeat(before[self.first], _runs(self.first))
        fresh = np.array(self.first)
        fresh[1:] |= self.document[1:] != self.document[:-1]
        own = np.arange(len(fresh)) - np.repeat(np.flatnonzero(fresh), _runs(fresh))
        others = before - np.where(stays, own, 0)
        return np.flatnonzero(others + own >= times), np.flatnonzero(others >= times)


def _in_range(keys: Mapping[str, Any], part: int, parts: int) -> list[np.ndarray]:
    """Digest, place, document and size of the paragraphs whose digests are in one range of values."""
    columns = [keys[name] for name in ("digests", "sizes", "rows")]
    found: list[list[np.ndarray]] = [[np.zeros(0, np.uint64)], *([np.zeros(0, np.int64)] for _ in range(3))]
    place = document = 0
    for digests, sizes, rows in zip(*map(parts_of, columns), strict=True):
        mine = np.array(digests)
        chosen = inside(mine, part, parts)
        owner = np.searchsorted(np.cumsum(rows), chosen, "right") + document
        for kept, values in zip(found, (mine[chosen], chosen + place, owner, sizes[chosen]), strict=True):
            kept.append(values)
        place, document = place + len(mine), document + len(rows)
    return [np.concatenate(values) for values in found]


def _runs(first: np.ndarray) -> np.ndarray:
    """int64: lengths of the runs that begin where `first` is true; it is at the beginning."""
    return np.diff(np.append(np.flatnonzero(first), len(first)))


def _left(removed: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """Share of each document's characters that is left."""
    return np.asarray(1 - removed / np.maximum(chars, 1))


def _digest(text: str) -> int:
    """One at which nobody can aim: what a collision removes is another's text."""
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big")
