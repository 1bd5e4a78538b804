"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; FineWeb2, arXiv 2506.20920, 3.3).

A document is the set of its runs of five words, in the folded form. Two documents whose sets have Jaccard
similarity s share one of the 14 buckets of 8 hashes with probability 1 - (1 - s^8)^14: 0.92 at s = 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages, Words, mixed
from shunter.data.curation.room import Room, blocks, only, parts_of, ranged, room_of

EARLIER = -2  # number of the first document of earlier corpora; -1 stands for none
EACH = 96  # bytes a document while one range of a bucket is sorted, what sorting takes among them
MOST = 2**31 - 1  # documents whose numbers 32 bits hold
TILE = 1024  # runs hashed at once: with 112 hashes 448 KiB, which a core's own cache holds


class NearDuplicates(Barrier):
    """Keeps the first of documents that share a bucket, directly or by way of others, with their number.

    Documents with fewer words than a run are not compared. The hashes are multiplications modulo 2^32 of a
    well mixed 32-bit hash of a run, where the paper's are modulo 2^61 - 1 of a 64-bit one: the same law,
    measured in the tests, at a tenth of the cost.
    """

    source: ClassVar[str] = "FineWeb2, arXiv 2506.20920, section 3.3"

    kind: Literal["near-duplicates"] = Field("near-duplicates", description="MinHash and buckets.")
    words: int = Field(5, ge=1, description="Words in a run.")
    buckets: int = Field(14, ge=1, le=256, description="Buckets; one in common makes a pair.")
    hashes: int = Field(8, ge=1, le=64, description="Hashes that make a bucket.")
    seed: int = Field(1, ge=0, description="Of the hash functions.")
    earlier: str = Field("", description="Where the job keeps what it knows of `earlier`; leave it out.")

    def columns(self) -> dict[str, str]:
        return {"cluster_size": "int32"}

    def keys(self, pages: Pages) -> Keys:
        digests, signed = self.digests(pages)
        return {"digests": digests, "signed": signed}

    def digests(self, pages: Pages) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [documents, buckets], and bool per document: whether it has a run at all."""
        folded = pages.folded()
        size = self.buckets * self.hashes
        least, signed = self._least(folded.words), folded.words.counts >= self.words
        folded.forget()
        parts = least.reshape(len(pages), self.buckets, self.hashes).astype(np.uint64)
        digests = np.broadcast_to(np.arange(self.buckets, dtype=np.uint64), (len(pages), self.buckets))
        for column in range(self.hashes):
            digests = mixed(digests + parts[:, :, column] + np.uint64(size))
        return digests, signed

    def minima(self, pages: Pages) -> np.ndarray:
        """uint32 [documents, buckets x hashes]: the least value of each hash over the document's runs."""
        return self._least(pages.folded().words)

    def _least(self, words: Words) -> np.ndarray:
        runs = (mixed(words.sequence.grams(self.words)) >> np.uint64(32)).astype(np.uint32)
        runs = np.maximum(runs, 1)  # 0 would be 0 under every hash, and all that have it one cluster
        draw = np.random.default_rng(self.seed)
        factors = draw.integers(0, 1 << 31, (self.buckets * self.hashes, 1), dtype=np.uint32) * 2 + 1
        least = np.full((len(words.pages), len(factors)), 0xFFFFFFFF, np.uint32)
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
        """root: int64 per document, the number of the first of its cluster; size: its cluster's."""
        room = room_of(keys)
        keys, before = self._after_earlier(keys)
        number = room.whole("number", keys["number"], np.int64)
        parent = clusters(keys["digests"], keys["signed"], self.buckets, room)
        root = room.array("root", len(parent), np.int64)
        count, size = (room.array(name, len(parent), parent.dtype) for name in ("count", "size"))
        for rows in blocks(len(parent)):
            np.add.at(count, parent[rows], 1)
        for rows in blocks(len(parent)):
            root[rows], size[rows] = number[parent[rows]], count[parent[rows]]
        return {"root": root[before:], "size": size[before:]}

    def _after_earlier(self, keys: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
        """The keys of earlier corpora before those of this one, and how many documents they are of."""
        places = (
            sorted(path for path in Path(self.earlier).iterdir() if path.is_dir()) if self.earlier else []
        )
        if not places:
            return keys, 0
        names = ("digests", "signed", "number")
        both = {name: keys[name].after([place / f"{name}.npy" for place in places]) for name in names}
        before = sum(len(np.load(place / "signed.npy", mmap_mode="r")) for place in places)
        return both, before

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


def clusters(digests: Any, signed: Any, buckets: int, room: Room) -> np.ndarray:
    """Per document: the least document that it hangs together with, over all buckets.

    digests: uint64 [documents, buckets], signed: bool; arrays or columns of keys. Documents that are not
    signed are alone. Memory: 4 bytes a document (8 from two thousand million on), in a file where that is
    much, and EACH for those of one bucket and one range of its values, however many have one value.
    """
    count = sum(map(len, parts_of(signed)))
    parent = room.array("parent", count, np.int32 if count <= MOST else np.int64)
    for rows in blocks(count):
        parent[rows] = np.arange(rows.start, rows.stop)
    for bucket in range(buckets):
        for some in ranged(only(digests, bucket), room, EACH, "bucket", where=signed):
            first = some.first()
            later = np.flatnonzero(first != some.places)
            for cut in blocks(len(later)):
                join(parent, first[later[cut]], some.places[later[cut]])
    for rows in blocks(count):  # a parent stands before its child, so one pass brings all to their roots
        while not np.array_equal(shorter := parent[parent[rows]], parent[rows]):
            parent[rows] = shorter
    return parent


def join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Bring the edges (left, right) into `parent`, whose roots are the least of their trees.

    Each round hooks the greater root of every edge to the lesser and shortens the paths of these roots; the
    work goes with the edges, not with the documents.
    """
    a, b = _roots(parent, left), _roots(parent, right)
    while True:
        open_ = a != b
        if not open_.any():
            return
        a, b = a[open_], b[open_]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        both = np.concatenate([a, b])
        while not np.array_equal(shorter := parent[parent[both]], parent[both]):
            parent[both] = shorter
        a, b = parent[a], parent[b]


def _roots(parent: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The roots of some documents, which then point at them directly."""
    found = np.asarray(parent[places])
    while not np.array_equal(further := parent[found], found):
        found = further
    parent[places] = found
    return found
