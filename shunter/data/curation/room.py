"""What a barrier settles with: keys of all chunks that lie on disk, and a bound on what it holds in memory.

Keys are read one file at a time, as a corpus may have more chunks than a process may have files. A
settlement sorts them in parts, each of a range of their values, so that a part fits; arrays of a row a
document lie in files when they are greater than what is allowed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np

MB = 1_000_000
SMALL = 4096  # bytes of a file that is read rather than mapped
BLOCK = 1 << 17  # rows of a large array that are worked on at once
FILES = 64  # that are written at once; some systems let a process open 256
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

    def array(self, name: str, count: int, dtype: Any) -> np.ndarray:
        """Zeros, in memory or in a file of this name. A sixteenth of the room may be one array in memory."""
        kind = np.dtype(dtype)
        if self.size is None or not count or count * kind.itemsize <= self.size // 16:
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

    def aside(self, name: str, values: np.ndarray, away: bool) -> Callable[[], np.ndarray]:
        """Put one of many arrays away, in a file of this name, or keep it; what is returned gives it back."""
        if not away:
            return lambda: values
        assert self.folder is not None
        path = self.folder / f"settled.{name}.bin"
        values.tofile(path)
        return partial(np.fromfile, path, values.dtype)


def rest(array: np.ndarray) -> None:
    """Let go of the pages of an array that lies in a file: they count as this process's until then, and stay
    in the system's own memory as long as there is room."""
    base: object = array.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def blocks(count: int) -> Iterator[slice]:
    """Rows, so many at once that an expression over them is no large array."""
    for begin in range(0, count, BLOCK):
        yield slice(begin, min(begin + BLOCK, count))


class Range:
    """Rows of values in one range, their places rising: all that there are, or one block of many.

    values: uint64; places: int64. Of the range's other rows only what stands for each distinct value is held:
    `first`, its first place, `count`, how often it stands, and how often before this block.
    """

    def __init__(self, values: np.ndarray, places: np.ndarray, known: Known | None = None) -> None:
        self.values, self.places, self.known = values, places, known
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        self._heads = np.concatenate([np.zeros(min(len(values), 1), np.int64), changes])
        self._sizes = np.diff(np.append(self._heads, len(values)))
        self._at = None if known is None else np.searchsorted(known.values, ordered[self._heads])

    def first(self) -> np.ndarray:
        """int64 per row: the first place that has its value."""
        if self.known is not None:
            return self._spread(self.known.first[self._at])
        return self._spread(self.places[self._order[self._heads]])

    def counts(self) -> np.ndarray:
        """int64 per row: how often its value stands among all."""
        return self._spread(self._sizes if self.known is None else self.known.count[self._at])

    def before(self) -> np.ndarray:
        """int64 per row: how often its value stands at earlier places."""
        begin = self._heads if self.known is None else self._heads - self.known.before[self._at]
        found = np.empty(len(self.values), np.int64)
        found[self._order] = np.arange(len(found)) - np.repeat(begin, self._sizes)
        return found

    def often(self, least: int) -> tuple[np.ndarray, np.ndarray]:
        """int64: rows whose value stands at least so often among all, those of one value after another; and
        the number of each one's value among the `kinds` of the range, the same in all of its blocks."""
        counts = self._sizes if self.known is None else self.known.count[self._at]
        numbers = np.arange(len(self._heads)) if self._at is None else self._at
        chosen = counts >= least
        return self._order[np.repeat(chosen, self._sizes)], np.repeat(numbers[chosen], self._sizes[chosen])

    @property
    def kinds(self) -> int:
        """How many distinct values the whole range has."""
        return len(self._heads) if self.known is None else len(self.known.values)

    def pass_on(self) -> None:
        """Count this block's rows as before the next one's."""
        if self.known is not None:
            self.known.before[self._at] += self._sizes

    def _spread(self, heads: np.ndarray) -> np.ndarray:
        found = np.empty(len(self.values), np.int64)
        found[self._order] = np.repeat(heads, self._sizes)
        return found


class Known:
    """Distinct values, rising, with the first place of each, how often it stands, and how often so far."""

    def __init__(self) -> None:
        self.values = np.zeros(0, np.uint64)
        self.first, self.count, self.before = (np.zeros(0, np.int64) for _ in range(3))

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """Take in rows whose places are behind those of the ones before."""
        fresh, begin, sizes = np.unique(values, return_index=True, return_counts=True)
        at = np.searchsorted(self.values, fresh)
        old = np.append(self.values, 0)[at] == fresh if len(self.values) else np.zeros(len(fresh), bool)
        old &= at < len(self.values)
        self.count[at[old]] += sizes[old]
        new = ~old
        self.first = np.insert(self.first, at[new], places[begin[new]])
        self.count = np.insert(self.count, at[new], sizes[new])
        self.values = np.insert(self.values, at[new], fresh[new])
        self.before = np.zeros(len(self.values), np.int64)


def ranged(
    column: Any, room: Room, each: int, name: str, *, zeros: bool = True, where: Any = None
) -> Iterator[Range]:
    """The uint64 values of a column and their places among all, by ranges of the values.

    Equal values are in one range. each: bytes that the caller needs for one value while a range is worked on,
    those of `Range` among them. Where all do not fit, the column is read once for each FILES ranges, and each
    range is written to a file of its own (`settled.NAME...`), read back alone and removed. A range that has
    far more than its share, as many rows have one value, is read in blocks, and of its distinct values 32
    bytes each are held. Ranges without a value are left out; so are values of 0, which may stand for none,
    without `zeros`, and those for which `where`, a column of bool, is false.
    """
    count = sum(map(len, parts_of(column)))
    parts = room.parts(count, each)
    if parts == 1:
        values = np.asarray(column).astype(np.uint64, copy=False)
        chosen = np.ones(len(values), bool) if where is None else np.asarray(where)
        places = np.flatnonzero(chosen if zeros else chosen & (values != 0))
        if len(places):
            yield Range(values if len(places) == len(values) else values[places], places)
        return
    assert room.folder is not None, "what does not fit must go somewhere"
    assert room.size is not None
    most = max(room.size // 2 // each, 1)
    for first in range(0, parts, FILES):
        numbers = range(first, min(first + FILES, parts))
        paths = [room.folder / f"settled.{name}.{number}.rows" for number in numbers]
        _spread(column, paths, first, parts, zeros, where)
        for path in paths:
            yield from _range(path, most)
            path.unlink()


def _range(path: Path, most: int) -> Iterator[Range]:
    """One range that was written, whole if it has about so many rows or fewer, else in blocks of as many."""
    count = path.stat().st_size // SPREAD.itemsize
    if count <= most + most // 4:  # shares of values that are spread evenly differ a little
        most, known = max(count, 1), None
    else:
        known = Known()
        for begin in range(0, count, most):
            known.add(*_rows(path, begin, most))
    for begin in range(0, count, most):
        block = Range(*_rows(path, begin, most), known)
        yield block
        block.pass_on()


def _rows(path: Path, begin: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and places of some rows of a range."""
    rows = np.fromfile(path, SPREAD, most, offset=begin * SPREAD.itemsize)
    return np.ascontiguousarray(rows["value"]), np.ascontiguousarray(rows["place"])


def _spread(column: Any, paths: list[Path], first: int, parts: int, zeros: bool, where: Any = None) -> None:
    """Write values and places of the ranges from `first` on, a file each."""
    shift = np.uint64(64 - (parts.bit_length() - 1))
    begin = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        masks: Iterator[np.ndarray | None] = repeat(None) if where is None else parts_of(where)
        for part, mask in zip(parts_of(column), masks, strict=False):
            for cut in blocks(len(part)):
                values = np.array(part[cut], np.uint64)
                number = (values >> shift).astype(np.int64) - first
                if not zeros:
                    number[values == 0] = -1
                if mask is not None:
                    number[~mask[cut]] = -1
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
