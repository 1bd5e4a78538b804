"""Which document was the first with a text: a table of digests that grows beyond memory.

The newest digests are in a dictionary. When it is full it becomes a file, sorted; files of like size are
merged, so that there are few. A filter of bits says of most digests that no file has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shunter.data.curation.room import rest

MOST = 200_000  # digests in the dictionary: about 40 MB
FANOUT = 8  # files of one level that become one of the next
BITS = 28  # of a place in the filter: 32 MB


class Firsts:
    """Digests of 16 bytes with the number of the document that had each first.

    Memory: about 75 MB at most, whatever the number of digests, and such pages of the files as were looked at
    since the dictionary was last full; on disk 24 bytes each, twice that while files are merged. Two digests
    count as equal when all their 128 bits are.
    """

    def __init__(self, folder: Path, most: int = MOST, bits: int = BITS) -> None:
        self._folder, self._most, self._bits = folder, most, bits
        self._new: dict[bytes, int] = {}
        self._files: list[
            list[np.ndarray]
        ] = []  # by level; each uint64 [digests, 3], sorted by its first column
        self._filter = bytearray()
        self._made = 0

    def add(self, digest: bytes, number: int) -> int | None:
        """The number of the first document with this digest, or None when it is this one."""
        found = self._new.get(digest)
        if found is None and self._filter and self._may_have(digest):
            found = self._look(digest)
        if found is not None:
            return found
        self._new[digest] = number
        if len(self._new) >= self._most:
            self._spill()
        return None

    def forget(self) -> None:
        """Hold nothing more: no digest will be asked."""
        self._new, self._files, self._filter = {}, [], bytearray()

    def _may_have(self, digest: bytes) -> bool:
        first, second = (int.from_bytes(digest[at : at + 4], "little") >> 32 - self._bits for at in (8, 12))
        return bool(self._filter[first >> 3] >> (first & 7) & self._filter[second >> 3] >> (second & 7) & 1)

    def _look(self, digest: bytes) -> int | None:
        high, low = np.frombuffer(digest, "<u8")
        for file in (file for level in self._files for file in level):
            at = int(np.searchsorted(file[:, 0], high))
            while at < len(file) and file[at, 0] == high:
                if file[at, 1] == low:
                    return int(file[at, 2])
                at += 1
        return None

    def _spill(self) -> None:
        """The dictionary becomes a file."""
        if not self._filter:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._filter = bytearray(1 << self._bits - 3)
        table = np.empty((len(self._new), 3), np.uint64)
        table[:, :2] = np.frombuffer(b"".join(self._new), "<u8").reshape(-1, 2)
        table[:, 2] = np.fromiter(self._new.values(), np.uint64, len(self._new))
        bits = np.frombuffer(self._filter, np.uint8)
        for shift in (0, 32):
            places = (table[:, 1] >> np.uint64(shift) & np.uint64(0xFFFFFFFF)) >> np.uint64(32 - self._bits)
            np.bitwise_or.at(
                bits, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
            )
        self._new = {}
        for file in (file for level in self._files for file in level):
            rest(file)
        self._put(0, len(table), iter([table[np.argsort(table[:, 0])]]))

    def _put(self, level: int, count: int, parts: Iterator[np.ndarray]) -> None:
        """A file of sorted parts, one after another; enough of one level become one of the next."""
        path = self._folder / f"{self._made:06}.npy"
        self._made += 1
        file = np.lib.format.open_memmap(path, "w+", np.uint64, (count, 3), fortran_order=True)
        begin = 0
        for part in parts:
            file[begin : begin + len(part)] = part
            begin += len(part)
            rest(file)
        file.flush()
        if len(self._files) == level:
            self._files.append([])
        self._files[level].append(np.load(path, mmap_mode="r"))
        if len(self._files[level]) == FANOUT:
            merged, self._files[level] = self._files[level], []
            self._put(level + 1, sum(map(len, merged)), self._merged(merged))
            for old in merged:
                Path(str(old.filename)).unlink()  # type: ignore[attr-defined]

    def _merged(self, files: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Their rows by ranges of the first column, each about as large as the dictionary."""
        parts = 1 << (sum(map(len, files)) // self._most).bit_length()
        for part in range(parts):
            edges = [part * ((1 << 64) // parts), (part + 1) * ((1 << 64) // parts) - 1]
            low, high = np.array(edges, np.uint64)
            rows = [
                np.array(file[np.searchsorted(file[:, 0], low) : np.searchsorted(file[:, 0], high, "right")])
                for file in files
            ]
            for file in files:
                rest(file)
            together = np.concatenate(rows)
            yield together[np.argsort(together[:, 0])]
