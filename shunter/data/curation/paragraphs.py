"""Exact duplicates of paragraphs and lines over a whole corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.room import Room, blocks, ranged, room_of

EACH = 96  # bytes a paragraph while one range of their digests is sorted, or judged
REPEAT = np.dtype([("place", "<i8"), ("document", "<i8"), ("size", "<u4"), ("kind", "<u4")])
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
        rows = room.whole("rows", keys["rows"], np.int32)
        chars = room.whole("chars", keys["chars"], np.uint32)
        repeats = self._repeats(keys, rows, room)
        going = room.array("going", len(rows), bool)
        removed = room.array("removed", len(rows), np.uint32)
        for _ in range(ROUNDS):
            removed[:] = 0
            for part in repeats:
                for block, _, others in part.again(going, self.times):
                    np.add.at(removed, block["document"][others], block["size"][others])
            changed = False
            for some in blocks(len(rows)):
                now = (removed[some] > 0) & (_left(removed[some], chars[some]) < self.min_left)
                changed |= not np.array_equal(now, going[some])
                going[some] = now
            if not changed:
                break
        marks = room.array("marks", int(rows.sum()), np.uint8)
        for part in repeats:
            for block, again, others in part.again(going, self.times):
                marks[block["place"][again]] = AGAIN
                goes = going[block["document"][others]]
                marks[block["place"][others]] = np.where(goes, AGAIN | OTHERS | WHOLE, AGAIN | OTHERS)
        return {"rows": rows, "marks": marks}

    def _repeats(self, keys: Mapping[str, Any], rows: np.ndarray, room: Room) -> list[Repeats]:
        """The paragraphs that stand more than `times` times, by ranges of their digests."""
        count = int(rows.sum())
        sizes = room.whole("sizes", keys["sizes"], np.uint32)
        ends = room.array("ends", len(rows), np.int64)  # of each document's paragraphs, among all
        total = 0
        for some in blocks(len(rows)):
            ends[some] = total + np.cumsum(rows[some])
            total = int(ends[some][-1])
        away = room.parts(count, EACH) > 1
        found: list[Repeats] = []
        known = None
        for number, part in enumerate(ranged(keys["digests"], room, EACH, "paragraphs")):
            if part.known is None or part.known is not known:
                found.append(Repeats(part.kinds))
            known = part.known
            order, kind = part.often(self.times + 1)
            block = np.empty(len(order), REPEAT)
            place = block["place"] = part.places[order]
            block["document"] = np.searchsorted(ends, place, "right")
            block["size"], block["kind"] = sizes[place], kind
            found[-1].blocks.append(room.aside(f"repeats.{number}", block, away))
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


class Repeats:
    """Paragraphs that stand often, of one range of digests, in blocks that are looked at one by one.

    Of each, as REPEAT: its place among all paragraphs, its document's among all documents, its characters,
    and the number of its digest among those of the range, `kinds`. In a block those of one digest stand one
    after another, in order; those of later blocks come after them.
    """

    def __init__(self, kinds: int) -> None:
        self.kinds = kinds
        self.blocks: list[Callable[[], np.ndarray]] = []

    def again(self, going: np.ndarray, times: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Each block, with int64: which of it stand after `times` of their digest, their own document's
        included; and which after as many of other documents. Those of other documents that go do not count.
        """
        stay = np.zeros(self.kinds, np.int64)  # how many so far are of documents that stay
        last = np.full(self.kinds, -1, np.int64)  # the document of the one before
        run = np.zeros(self.kinds, np.int64)  # how many before are of that document, one after another
        for block in (read() for read in self.blocks):
            if not len(block):
                continue
            kind, document = block["kind"], block["document"]
            heads = np.flatnonzero(np.append(True, kind[1:] != kind[:-1]))
            first = np.append(True, document[1:] != document[:-1])  # of its document
            first[heads] = True
            here, sizes = kind[heads], np.diff(np.append(heads, len(block)))
            stays = ~going[document]
            before = np.cumsum(stays) - stays
            before += np.repeat(stay[here] - before[heads], sizes)
            starts = np.flatnonzero(first)
            # Where each run of one document would have begun, were all of it in this block.
            begins = starts.copy()
            begins[np.searchsorted(starts, heads)] -= np.where(last[here] == document[heads], run[here], 0)
            own = np.arange(len(block)) - np.repeat(begins, np.diff(np.append(starts, len(block))))
            others = before - np.where(stays, own, 0)
            yield block, np.flatnonzero(others + own >= times), np.flatnonzero(others >= times)
            ends = heads + sizes - 1
            stay[here] = before[ends] + stays[ends]
            last[here], run[here] = document[ends], own[ends] + 1


def _left(removed: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """Share of each document's characters that is left."""
    return np.asarray(1 - removed / np.maximum(chars, 1))


def _digest(text: str) -> int:
    """One at which nobody can aim: what a collision removes is another's text."""
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big")
