"""Deduplication inside each source, by beginnings, sentences and edges (MixtureVitae, arXiv 2509.25531,
section on local deduplication). What another source holds has no effect: overlaps stay, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Barrier, Facts, Keys, Verdicts
from shunter.data.curation.pages import Pages, Prefix, Spans, lowered, mixed
from shunter.data.curation.room import blocks, only, parts_of, ranged, room_of

EACH = 80  # bytes a beginning, sentence or edge while one range of their hashes is sorted

BOILERPLATE = (
    "click here", "read more", "all rights reserved", "privacy policy", "terms of use", "sign up", "log in",
    "subscribe", "cookies", "share this", "follow us", "advertisement",
)  # fmt: skip


def of_source(pages: Pages, facts: Facts) -> np.ndarray:
    """uint64 per document: a hash of its source's name, alike in every batch; 0 where none is known."""
    if "source" not in facts or not len(pages):
        return np.zeros(len(pages), np.uint64)
    return Pages(facts["source"].tolist()).hashes_whole


class RepeatedBeginnings(Barrier):
    """Drops a document whose beginning is that of an earlier one of its source.

    Of each word longer than one letter the first four letters count. Earlier documents are known by their
    first 20, 40, ... 220 words; a later one goes when its longest such beginning is among them: a copy that
    was cut or goes on differently after 220 words is one too. Documents of fewer than 20 such words are
    not compared.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on local deduplication"

    kind: Literal["repeated-beginnings"] = Field("repeated-beginnings", description="Equal beginnings.")
    least: int = Field(20, ge=1, description="Words of the shortest beginning, and between one and the next.")
    most: int = Field(220, ge=1, description="Words of the longest beginning.")

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        words = pages.folded().words
        long = words.lengths > 1
        heads = words.pages.hashes.of(words.begins[long], np.minimum(words.ends, words.begins + 4)[long])
        first = np.concatenate([[0], np.cumsum(words.sums(long))])
        prefix, sources = Prefix(mixed(heads)), of_source(pages, facts)
        rows = np.minimum(np.diff(first), self.most) // self.least
        sizes = (np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows) + 1) * self.least
        begins = np.repeat(first[:-1], rows)
        hashes = prefix.of(begins, begins + sizes) + sizes.astype(np.uint64)
        return {"rows": rows, "hashes": mixed(hashes ^ np.repeat(sources, rows))}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """root: the number of the earlier document, or the document's own."""
        room = room_of(keys)
        number = room.whole("number", keys["number"], np.int64)
        ends = np.cumsum(room.whole("rows", keys["rows"], np.int64))
        root = room.array("root", len(number), np.int64)
        for rows in blocks(len(number)):
            root[rows] = number[rows]
        for each in ranged(keys["hashes"], room, EACH, "beginnings"):
            owner = np.searchsorted(ends, each.places, "right")
            longest = each.places == ends[owner] - 1
            first = np.searchsorted(ends, each.first()[longest], "right")
            root[owner[longest]] = number[first]  # rows are in order, so the first of each is the earliest
        return {"root": root}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        root, zeros = settled["root"], np.zeros(len(pages))
        reason = np.where(root == settled["number"], -1, 0).astype(np.int16)
        return Verdicts(["repeated beginning"], reason, zeros, zeros, of=np.where(reason < 0, -1, root))


class RepeatedSentences(Barrier):
    """Removes sentences of low quality from their third time on in a source, and drops documents that are
    mostly sentences said before.

    Sentences of more than 30 characters are compared, without case. Low quality: many special characters, few
    stopwords, or a phrase of boilerplate.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on local deduplication"
    ours: ClassVar[tuple[str, ...]] = ("words", "phrases")

    kind: Literal["repeated-sentences"] = Field("repeated-sentences", description="Sentences said before.")
    min_chars: int = Field(30, ge=1, description="Only longer sentences are compared.")
    times: int = Field(2, ge=1, description="How often one may stand before the next is removed.")
    special: float = Field(
        0.1, ge=0, le=1, description="Above this share of special characters: low quality."
    )
    stopwords: float = Field(0.05, ge=0, le=1, description="Below this share of stopwords: low quality.")
    words: list[str] = Field(
        str.split("the a an and or of to in is are was were be it that this for on with as at by from"),
        description="Stopwords.",
    )
    phrases: list[str] = Field(list(BOILERPLATE), description="Phrases of boilerplate, in lower case.")
    max_duplicate: float = Field(
        0.75, gt=0, le=1, description="Documents with this share of sentences said before, or more, go."
    )

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        spans = sentences(pages)
        long = spans.lengths > self.min_chars
        sources = of_source(pages, facts)
        hashes = mixed(
            lowered(pages).of(spans.begins[long], spans.ends[long]) ^ sources[spans.document[long]]
        )
        return {"rows": spans.sums(long), "hashes": hashes}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """seen: uint8 per sentence that is compared, how often it stands earlier, up to 255."""
        room = room_of(keys)
        rows = room.whole("rows", keys["rows"], np.int64)
        seen = room.array("seen", int(rows.sum()), np.uint8)
        for each in ranged(keys["hashes"], room, EACH, "sentences"):
            seen[each.places] = np.minimum(each.before(), 255)
        return {"rows": rows, "seen": seen}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        spans = sentences(pages)
        long = spans.lengths > self.min_chars
        seen = np.zeros(len(spans), np.int64)
        seen[long] = settled["seen"]
        compared = spans.sums(long)
        share = spans.sums(seen > 0) / np.maximum(compared, 1)
        reason = np.where((share >= self.max_duplicate) & (compared > 0), 0, -1).astype(np.int16)
        gone = seen >= self.times
        texts: list[str] | None = None
        removed = 0
        for number in np.flatnonzero((spans.sums(gone) > 0) & (reason < 0)).tolist():
            left, count = without(pages, spans, number, gone, self.poor)
            if count:
                texts = list(pages.texts) if texts is None else texts
                texts[number] = left
                removed += count
        counts = {"repeated sentences": removed} if removed else {}
        limits = np.full(len(pages), self.max_duplicate)
        return Verdicts(["mostly said before"], reason, share, limits, texts=texts, counts=counts)

    def poor(self, sentence: str) -> bool:
        """Whether a sentence is of low quality."""
        lower = sentence.lower()
        special = sum(not (letter.isalnum() or letter.isspace()) for letter in sentence) / max(
            len(sentence), 1
        )
        words = [word.strip(".,;:!?\"'()") for word in lower.split()]
        stops = sum(word in self.words for word in words) / max(len(words), 1)
        return special > self.special or stops < self.stopwords or any(p in lower for p in self.phrases)


class RepeatedEdges(Barrier):
    """Strips headers and footers: first and last words of documents, where many of a source share them.

    Runs of 6, 5 and 4 words at an end that stand there in 3, 4 and 5 documents or more go, the longest first.
    One round strips one run of each end; the paper has up to three: name the operator as often.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on local deduplication"

    kind: Literal["repeated-edges"] = Field("repeated-edges", description="Headers and footers.")
    sizes: list[int] = Field([6, 5, 4], min_length=1, description="Words of the runs, the longest first.")
    times: list[int] = Field([3, 4, 5], min_length=1, description="Documents that must share each.")

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        ends, sources = self._hashes(pages), of_source(pages, facts)
        return {"edges": np.where(ends > 0, mixed(ends ^ sources[:, None]), 0)}

    def _hashes(self, pages: Pages) -> np.ndarray:
        """uint64 [documents, 2 x sizes]: of the runs at the begin, then at the end; 0: too few words."""
        words, lower = pages.words, lowered(pages)
        prefix = Prefix(mixed(lower.of(words.begins, words.ends)))
        first, last = words.first[:-1], words.first[1:]
        found = np.zeros((len(pages), 2 * len(self.sizes)), np.uint64)
        for place, size in enumerate(self.sizes):
            enough = np.flatnonzero(last - first >= 2 * size)  # else little but the edge would be left
            salt = np.uint64(2 * place + 1)
            found[enough, place] = prefix.of(first[enough], first[enough] + size) + salt
            tail = prefix.of(last[enough] - size, last[enough])
            found[enough, place + len(self.sizes)] = tail + salt + np.uint64(1)
        return found

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """head and tail: int8 per document, the words that go."""
        room, width = room_of(keys), len(self.sizes)
        count = sum(map(len, parts_of(keys["edges"])))
        found = {name: room.array(name, count, np.int8) for name in ("head", "tail")}
        for place, (size, times) in enumerate(zip(self.sizes, self.times, strict=True)):
            for name, column in (("head", place), ("tail", place + width)):
                edges = only(keys["edges"], column)
                for each in ranged(edges, room, EACH, "edges", zeros=False):
                    mine = each.places[each.counts() >= times]
                    found[name][mine[found[name][mine] == 0]] = size  # a longer run goes first
        return found

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        words = pages.words
        texts: list[str] | None = None
        heads = tails = 0
        for number in np.flatnonzero((settled["head"] > 0) | (settled["tail"] > 0)).tolist():
            head, tail = int(settled["head"][number]), int(settled["tail"][number])
            text, base = pages.texts[number], int(pages.begins[number])
            first, last = int(words.first[number]) + head, int(words.first[number + 1]) - tail
            if first >= last:
                continue
            low = int(words.begins[first]) - base if head else 0
            high = int(words.ends[last - 1]) - base if tail else len(text)
            texts = list(pages.texts) if texts is None else texts
            texts[number] = text[low:high].strip()
            heads, tails = heads + (head > 0), tails + (tail > 0)
        told = {name: count for name, count in (("headers", heads), ("footers", tails)) if count}
        keep, zeros = np.full(len(pages), -1, np.int16), np.zeros(len(pages))
        return Verdicts([], keep, zeros, zeros, texts=texts, counts=told)


def sentences(pages: Pages) -> Spans:
    """Stretches that a mark ends, with a space after it, or a line feed; without spaces at their begins."""
    flags, codes = pages.flags, pages.codes
    after = np.ones(len(codes), bool)
    after[:-1] = pages.spaces[1:]
    breaks = codes == 10
    stops = np.flatnonzero(breaks | (((flags & glyphs.TERMINAL) != 0) & after))
    ends = np.where(breaks[stops], stops, stops + 1)
    begins = np.concatenate([[0], np.where(breaks[stops], stops + 1, ends)[:-1]]) if len(stops) else stops
    solid = np.append(np.flatnonzero(~pages.spaces), len(codes))
    begins = solid[np.searchsorted(solid, begins)]
    kept = begins < ends
    return Spans(pages, begins[kept], ends[kept])


def without(
    pages: Pages,
    spans: Spans,
    number: int,
    gone: np.ndarray,
    also: Callable[[str], bool] = lambda sentence: True,
) -> tuple[str, int]:
    """A document without its sentences that are gone (bool per sentence) and `also` so, each with one space
    after it; and how many these are."""
    text, base, at = pages.texts[number], int(pages.begins[number]), 0
    pieces: list[str] = []
    first, last = spans.first[number : number + 2].tolist()
    for place in (first + np.flatnonzero(gone[first:last])).tolist():
        low, high = int(spans.begins[place]) - base, int(spans.ends[place]) - base
        if also(text[low:high]):
            pieces.append(text[at:low])
            at = high + (text[high : high + 1] == " ")
    return "".join([*pieces, text[at:]]).strip() if pieces else text, len(pieces)
