"""Work over a corpus in units of some row groups, each done once whatever is killed.

What is made of a unit is written aside, brought to the disk and published by one renaming of its folder, with
its record in it; a later attempt does what has no folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shunter.data import corpus
from shunter.recipe import disk

UNIT_BYTES = 128 << 20  # of the columns of a unit, uncompressed: what a kill loses at most
RECORD = "record.json"


@dataclass(frozen=True)
class Unit:
    """The row groups [first, last) of a file. begin: the place of its first document among its split's.

    number: among those of its split.
    """

    path: Path
    first: int
    last: int
    begin: int
    rows: int
    number: int

    def batches(self, columns: Sequence[str] | None = None, rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """Its documents, some at a time."""
        with pq.ParquetFile(self.path) as file:
            groups = list(range(self.first, self.last))
            yield from file.iter_batches(batch_size=rows, row_groups=groups, columns=columns)


def units(folder: Path, most: int | None = None) -> list[Unit]:
    """One split in units of at most `most` bytes (default UNIT_BYTES), or of one row group that has more.

    Where they are cut hangs on the files alone, so that every attempt cuts alike.
    """
    found: list[Unit] = []
    most, begin = most or UNIT_BYTES, 0
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        first = size = rows = 0
        for number, group in enumerate(groups):
            size, rows = size + group.total_byte_size, rows + group.num_rows
            last = number + 1 == len(groups)
            if last or size + groups[number + 1].total_byte_size > most:
                found.append(Unit(path, first, number + 1, begin, rows, len(found)))
                first, begin = number + 1, begin + rows
                size = rows = 0
    return found


class Once:
    """Named pieces of work below a folder. What an attempt that was killed had half done is removed.

    stated: all that the pieces hang on, as JSON values; those of another statement are not taken for them.
    """

    def __init__(self, folder: Path, *stated: Any) -> None:
        told = json.dumps([UNIT_BYTES, *stated], sort_keys=True, default=str)
        self.folder = folder = folder / hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.part"):
            disk.remove(path)

    def __call__(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Path:
        """The folder of a piece of work.

        Where there is none, `make` is given an empty one to write files into, and returns the record, as JSON
        values. What it raises goes on, and nothing of it stays.
        """
        place, aside = self.folder / name, self.folder / f"{name}.part"
        if place.exists():
            return place
        aside.mkdir()
        try:
            record = make(aside)
            (aside / RECORD).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
            for path in disk.files(aside):
                disk.sync(path)
            for root, _, _ in os.walk(aside, topdown=False):
                disk.sync(Path(root))
            os.replace(aside, place)
        except BaseException:
            disk.remove(aside)  # on a full disk others need the room
            raise
        disk.sync(self.folder)
        return place


def record(place: Path) -> dict[str, Any]:
    """What a piece of work told of itself."""
    found: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
    return found


def gathered(parts: Iterable[Path], folder: Path, facts: Mapping[str, pa.DataType]) -> None:
    """One split of a corpus from files of units, in order: linked, not copied, and named by their number.

    parts: Parquet files with documents; of none at all, a file without documents is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = -1
    for number, path in enumerate(parts):
        target = folder / f"{number:05}.parquet"
        try:
            os.link(path, target)
        except OSError:  # no hard links here (some network and FAT file systems)
            shutil.copyfile(path, target)
    if number < 0:
        corpus.Writer(folder, facts).close()
