"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; FineWeb2, arXiv 2506.20920, 3.3).

A document is the set of its runs of five words, in the folded form. Two documents whose sets have Jaccard
similarity s share one of the 14 buckets of 8 hashes with probability 1 - (1 - s^8)^14: 0.92 at s = 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages, mixed

TILE = 1024  # runs hashed at once: with 112 hashes 448 KiB, which a core's own cache holds


class NearDuplicates(Barrier):
    """Keeps the first of documents that share a bucket, directly or by way of others, with their number.

    Documents with fewer words than a run are not compared. Defaults: FineWeb2, section 3.3. The hashes are
    multiplications modulo 2^32 of a well mixed 32-bit hash of a run, where the paper's are modulo 2^61 - 1
    of a 64-bit one: the same law, measured in the tests, at a tenth of the cost.
    """

    kind: Literal["near-duplicates"] = Field("near-duplicates", description="MinHash and buckets.")
    words: int = Field(5, ge=1, description="Words in a run.")
    buckets: int = Field(14, ge=1, le=256, description="Buckets; one in common makes a pair.")
    hashes: int = Field(8, ge=1, le=64, description="Hashes that make a bucket.")
    seed: int = Field(1, ge=0, description="Of the hash functions.")

    def columns(self) -> dict[str, str]:
        return {"cluster_size": "int32"}

    def keys(self, pages: Pages) -> Keys:
        digests, signed = self.digests(pages)
        return {"digests": digests, "signed": signed}

    def digests(self, pages: Pages) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [documents, buckets], and bool per document: whether it has a run at all."""
        size = self.buckets * self.hashes
        least = self.minima(pages)
        signed = least[:, 0] != 0xFFFFFFFF
        parts = least.reshape(len(pages), self.buckets, self.hashes).astype(np.uint64)
        digests = np.broadcast_to(np.arange(self.buckets, dtype=np.uint64), (len(pages), self.buckets))
        for column in range(self.hashes):
            digests = mixed(digests + parts[:, :, column] + np.uint64(size))
        return digests, signed

    def minima(self, pages: Pages) -> np.ndarray:
        """uint32 [documents, buckets x hashes]: the least value of each hash over the document's runs."""
        words = pages.folded().words
        runs = (mixed(words.sequence.grams(self.words)) >> np.uint64(32)).astype(np.uint32)
        draw = np.random.default_rng(self.seed)
        factors = draw.integers(0, 1 << 31, (self.buckets * self.hashes, 1), dtype=np.uint32) * 2 + 1
        least = np.full((len(pages), len(factors)), 0xFFFFFFFF, np.uint32)
        values = np.empty((len(factors), TILE), np.uint32)
        stops = words.first[1:] - self.words + 1
        for number, (begin, stop) in enumerate(zip(words.first[:-1].tolist(), stops.tolist(), strict=True)):
            for at in range(begin, stop, TILE):
                tile = runs[at : min(at + TILE, stop)]
                room = values[:, : len(tile)]
                np.multiply(factors, tile, out=room)
                np.minimum(least[number], room.min(axis=1), out=least[number])
        return least

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """root: int64 per document, the number of the first of its cluster; size: int64, the cluster's."""
        digests, signed = keys["digests"], np.asarray(keys["signed"])
        root = clusters((np.asarray(digests[:, n]) for n in range(self.buckets)), signed)
        size = np.bincount(root, minlength=len(root))[root]
        return {"root": np.asarray(keys["number"])[root], "size": size}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        root, number = settled["root"], settled["number"]
        reason = np.where(root == number, -1, 0).astype(np.int16)
        size = settled["size"].astype(np.float64)
        return Verdicts(
            ["near duplicate"],
            reason,
            size,
            np.ones(len(root)),
            {"cluster_size": settled["size"].astype(np.int32)},
            of=np.where(reason < 0, -1, root),
        )


def clusters(columns: Any, signed: np.ndarray) -> np.ndarray:
    """int64 per document: the least document that it hangs together with, over all buckets.

    columns: uint64 arrays, one a bucket; documents that are not signed are alone. Memory: about 40 bytes a
    document, of one bucket at a time.
    """
    parent = np.arange(len(signed))
    places = np.flatnonzero(signed)
    for column in columns:
        values = column[places]
        order = np.argsort(values, kind="stable")
        values = values[order]
        pairs = np.flatnonzero(values[1:] == values[:-1])
        join(parent, places[order[pairs]], places[order[pairs + 1]])
    return parent


def join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Bring the edges (left, right) into `parent`, in which every document points at its root directly.

    Each round hooks the greater root of every edge to the lesser and then shortens all paths.
    """
    while True:
        a, b = parent[left], parent[right]
        open_ = a != b
        if not open_.any():
            return
        left, right, a, b = left[open_], right[open_], a[open_], b[open_]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = parent[parent]
            if np.array_equal(shorter, parent):
                break
            parent[:] = shorter


class RepeatedParagraphs(Barrier):
    """Removes paragraphs that stand earlier in the corpus; a document with too little left goes.

    Paragraphs are parted by blank lines (`unit: line`: by line feeds) and compared by their characters.
    """

    kind: Literal["repeated-paragraphs"] = Field(
        "repeated-paragraphs", description="Exact duplicates of paragraphs or lines over the whole corpus."
    )
    unit: Literal["paragraph", "line"] = Field("paragraph", description="What is compared.")
    min_chars: int = Field(40, ge=1, description="Shorter ones are left alone: many are said often.")
    times: int = Field(1, ge=1, description="How often one may stand before the next is removed.")
    min_left: float = Field(
        0.25, ge=0, le=1, description="Documents of whose characters a smaller share is left go."
    )

    def _parts(self, pages: Pages) -> Any:
        return pages.paragraphs if self.unit == "paragraph" else pages.lines

    def keys(self, pages: Pages) -> Keys:
        parts = self._parts(pages)
        long = parts.lengths >= self.min_chars
        return {"rows": parts.sums(long), "hashes": parts.hashes[long]}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """again: bool per paragraph that is long enough."""
        hashes = np.asarray(keys["hashes"])
        order = np.argsort(hashes, kind="stable")
        values = hashes[order]
        again = np.zeros(len(hashes), bool)
        again[order[self.times :]] = values[self.times :] == values[: -self.times]
        return {"rows": np.asarray(keys["rows"]), "again": again}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        parts = self._parts(pages)
        gone = np.zeros(len(parts), bool)
        gone[parts.lengths >= self.min_chars] = settled["again"]
        removed = parts.sums(np.where(gone, parts.lengths, 0))
        with np.errstate(invalid="ignore"):
            left = 1 - removed / np.maximum(pages.lengths, 1)
        reason = np.where((removed > 0) & (left < self.min_left), 0, -1).astype(np.int16)
        texts = None
        edited = np.flatnonzero((removed > 0) & (reason < 0))
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
