"""Names of documents while a corpus is made: a row of numbers each, in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

# source: place among the labels. part: of a document that was taken apart, else -1. split: place among the
# splits where it is known from the start, else -1.
NAMES = np.dtype([("source", "<i4"), ("row", "<i8"), ("part", "<i4"), ("split", "i1")])


class Names:
    """Appends names and reads them again, by number."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("w+b")
        self.count = 0

    def add(self, source: int, row: int, part: int = -1, split: int = -1) -> int:
        """The number of the new name."""
        self._file.write(np.array((source, row, part, split), NAMES).tobytes())
        self.count += 1
        return self.count - 1

    def id(self, number: int, labels: Sequence[str]) -> str:
        """SOURCE:ROW or SOURCE:ROW.PART."""
        self._file.flush()
        raw = os.pread(self._file.fileno(), NAMES.itemsize, number * NAMES.itemsize)
        return id_of(np.frombuffer(raw, NAMES)[0], labels)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def names_in(path: Path) -> np.ndarray:
    """All names of a file, mapped."""
    return np.memmap(path, NAMES, "r") if path.stat().st_size else np.zeros(0, NAMES)


def id_of(name: Any, labels: Sequence[str]) -> str:
    """SOURCE:ROW or SOURCE:ROW.PART."""
    part = int(name["part"])
    return f"{labels[int(name['source'])]}:{int(name['row'])}" + ("" if part < 0 else f".{part}")
