"""A corpus on disk: Parquet files of documents with their place in the sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shunter.config.errors import ShunterError
from shunter.data.meter import Meter

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("row", pa.int64()), ("text", pa.string())])
BATCH_BYTES = 16 << 20  # text held before it is written as one row group
ROW_BYTES = 64  # of a document beside its strings


class Writer:
    """Writes `00000.parquet` in a folder, a row group at a time, in the order given.

    facts: further columns, which every document must then have.
    """

    def __init__(self, folder: Path, facts: Mapping[str, pa.DataType] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema([*SCHEMA, *(facts or {}).items()])
        self._file = pq.ParquetWriter(folder / "00000.parquet", self._schema, compression="zstd")
        self._rows: dict[str, list[object]] = {name: [] for name in self._schema.names}
        self._held = 0
        self.documents = self.bytes = 0

    def write(self, name: str, source: str, row: int, text: str, *facts: object) -> None:
        """Add one document; its facts in the order of their columns."""
        for column, value in zip(self._schema.names, (name, source, row, text, *facts), strict=True):
            self._rows[column].append(value)
        size = len(text.encode())
        self.documents += 1
        self.bytes += size
        self._held += size + sum(len(fact) for fact in facts if isinstance(fact, str)) + ROW_BYTES
        if self._held >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._rows["id"]:
            self._file.write_table(pa.table(self._rows, schema=self._schema))
            self._rows = {name: [] for name in self._schema.names}
            self._held = 0


@dataclass(frozen=True)
class Text:
    """A document of a corpus. copies: how often a training shows it."""

    id: str
    source: str
    text: str
    copies: int = 1


def batches(folder: Path, rows: int = 1024) -> Iterator[list[Text]]:
    """The documents of one split, in order, some at a time."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise ShunterError("the corpus has no Parquet file here", where=str(folder))
    for path in paths:
        with pq.ParquetFile(path) as file:
            columns = [c for c in ("id", "source", "text", "copies") if c in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield [Text(**fields) for fields in batch.to_pylist()]


def rows(folder: Path, meter: Meter | None = None) -> Iterator[dict[str, object]]:
    """The documents of one split, in order, with all their columns. meter: is told how far it is."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            seen = 0
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
                seen += len(batch)
                if meter is not None:
                    meter.passed(path, seen / file.metadata.num_rows)
        if meter is not None:
            meter.finished(path)


def facts(folder: Path) -> dict[str, pa.DataType]:
    """The columns of one split beside those that every corpus has."""
    paths = sorted(folder.glob("*.parquet"))
    schema = pq.read_schema(paths[0]) if paths else SCHEMA
    return {field.name: field.type for field in schema if field.name not in SCHEMA.names}


def texts(folder: Path) -> Iterator[Text]:
    """`batches`, one document at a time."""
    for batch in batches(folder):
        yield from batch
