"""What a barrier settles with: keys of all chunks that lie on disk, and a bound on what it holds in memory.

Keys are read one file at a time, as a corpus may have more chunks than a process may have files. A
settlement sorts them in parts, each of a range of their values, so that a part fits; arrays of a row a
document lie in files when they are greater than what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

MB = 1_000_000
SMALL = 4096  # bytes of a file that is read rather than mapped
BLOCK = 1 << 17  # rows of a large array that are worked on at once
FILES = 256  # that are written at once; a process may have a thousand open
SPREAD = np.dtype([("value", "<u8"), ("place", "<i8")])  # a row of such a file


class Room:
    """At most about `size` bytes at once; None: no bound. What is larger lies in `folder`."""

    def __init__(self, folder: Path | None = None, size: int | None = None) -> None:
        assert size is None or folder is not None, "what does not fit must go somewhere"
        self.folder, self.size = folder, size

    def parts(self, count: int, each: int) -> int:
        """In how many parts `count` things of `each` bytes fit half of the room; a power of two."""
        half = None if self.size is None else max(self.size // 2, 1)
        if half is None or count * each <= half:
            return 1
        return 1 << (-(-count * each // half) - 1).bit_length()

    def array(self, name: str, count: int, dtype: Any, away: bool = False) -> np.ndarray:
        """Zeros, in memory or in a file of this name. A sixteenth of the room may be one array in memory.

        away: it is one of many, so it goes to a file whatever its size.
        """
        kind = np.dtype(dtype)
        if self.size is None or not count or (count * kind.itemsize <= self.size // 16 and not away):
            return np.zeros(count, kind)
        assert self.folder is not None
        path = self.folder / f"settled.{name}.bin"
        path.unlink(missing_ok=True)  # a new file is full of zeros
        return np.memmap(path, kind, "w+", shape=(count,))

    def whole(self, name: str, column: Any, dtype: Any) -> np.ndarray:
        """A column of keys as one array."""
        whole = self.array(name, sum(map(len, parts_of(column))), dtype)
        begin = 0
        for part in parts_of(column):
            whole[begin : begin + len(part)] = part
            begin += len(part)
        return whole


def blocks(count: int) -> Iterator[slice]:
    """Rows, so many at once that an expression over them is no large array."""
    for begin in range(0, count, BLOCK):
        yield slice(begin, min(begin + BLOCK, count))


def inside(values: np.ndarray, part: int, parts: int) -> np.ndarray:
    """int64: the places of uint64 values in one of as many equal ranges (a power of two)."""
    if parts == 1:
        return np.arange(len(values))
    shift = np.uint64(64 - (parts.bit_length() - 1))
    return np.flatnonzero(values >> shift == np.uint64(part))


def ranged(
    column: Any, room: Room, each: int, name: str, *, zeros: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The uint64 values of a column and their places among all (int64, rising), by ranges of the values.

    Equal values are in one range. each: bytes that the caller needs for one value while a range is worked on.
    Where all do not fit, the column is read once for each FILES ranges, and each range is written to a file
    of its own (`settled.NAME...`), read back alone and removed. Ranges without a value are left out; so are
    values of 0, which may stand for none, without `zeros`.
    """
    parts = room.parts(sum(map(len, parts_of(column))), each)
    if parts == 1:
        values = np.asarray(column).astype(np.uint64, copy=False)
        places = np.arange(len(values)) if zeros else np.flatnonzero(values)
        if len(places):
            yield (values if zeros else values[places]), places
        return
    assert room.folder is not None, "what does not fit must go somewhere"
    for first in range(0, parts, FILES):
        numbers = range(first, min(first + FILES, parts))
        paths = [room.folder / f"settled.{name}.{number}.rows" for number in numbers]
        _spread(column, paths, first, parts, zeros)
        for path in paths:
            rows = np.fromfile(path, SPREAD)
            path.unlink()
            if len(rows):
                yield np.ascontiguousarray(rows["value"]), np.ascontiguousarray(rows["place"])


def _spread(column: Any, paths: list[Path], first: int, parts: int, zeros: bool) -> None:
    """Write values and places of the ranges from `first` on, a file each."""
    shift = np.uint64(64 - (parts.bit_length() - 1))
    begin = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for part in parts_of(column):
            for cut in blocks(len(part)):
                values = np.array(part[cut], np.uint64)
                number = (values >> shift).astype(np.int64) - first
                if not zeros:
                    number[values == 0] = -1
                order = np.argsort(number, kind="stable")
                edges = np.searchsorted(number[order], np.arange(len(files) + 1))
                rows = np.empty(len(values), SPREAD)
                rows["value"], rows["place"] = values[order], order + (begin + cut.start)
                for file, low, high in zip(files, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                    file.write(rows[low:high].tobytes())
            begin += len(part)


class Columns(Mapping[str, "Column"]):
    """Keys of all chunks of a stage, by name. room: what a settlement of them may hold."""

    def __init__(self, folder: Path, chunks: int, room: Room | None = None) -> None:
        self._folder, self._chunks = folder, chunks
        self.room = room or Room()

    def __getitem__(self, name: str) -> Column:
        return Column([self._folder / f"{number:06}.{name}.npy" for number in range(self._chunks)])

    def __iter__(self) -> Iterator[str]:
        paths = self._folder.glob("000000.*.npy") if self._chunks else ()
        return iter(sorted(path.name.split(".")[1] for path in paths))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Column:
    """Arrays one after another; all of them are read when asked for as one. One file is open at a time."""

    def __init__(self, paths: list[Path], only: int | None = None) -> None:
        self._paths, self._only = paths, only

    def after(self, paths: list[Path]) -> Column:
        """The same with other arrays before them."""
        return Column([*paths, *self._paths], self._only)

    def only(self, number: int) -> Column:
        """Of arrays of two dimensions one column."""
        return Column(self._paths, number)

    def parts(self) -> Iterator[np.ndarray]:
        """The arrays, each mapped while it is looked at."""
        for path in self._paths:
            mapped: Literal["r"] | None = "r" if path.stat().st_size > SMALL else None
            whole = np.load(path, mmap_mode=mapped)
            yield whole if self._only is None else whole[:, self._only]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Of each array the same columns (`[:, n]`), one after another."""
        parts = [np.array(part[key]) for part in self.parts()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        whole = np.concatenate([np.array(part) for part in self.parts()]) if self._paths else np.zeros(0)
        return whole if dtype is None else whole.astype(dtype)


def room_of(keys: Any) -> Room:
    """What a settlement of these keys may hold; of plain arrays, as tests have them, anything."""
    return keys.room if isinstance(keys, Columns) else Room()


def only(column: Any, number: int) -> Any:
    """One column of a table of keys, on disk or an array."""
    return column.only(number) if isinstance(column, Column) else column[:, number]


def parts_of(column: Any) -> Iterator[np.ndarray]:
    """The arrays of a column, or the one that is given."""
    if isinstance(column, Column):
        yield from column.parts()
    else:
        yield np.asarray(column)
