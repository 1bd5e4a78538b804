"""Bytes to texts and records, with every malformed place reported by file and line."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from shunter.config.errors import ShunterError
from shunter.data import encodings
from shunter.data.sources import Page, Problem, Record

Report = Callable[[Problem], None]
MAX_LINE_BYTES = 1 << 26  # a longer record is none that someone wrote, and is passed over unread
MAX_PAGE_BYTES = 1 << 23  # a longer web page is no text that someone wrote


def text(raw: bytes, place: str, encoding: str, report: Report) -> str:
    """A text file's content. Bytes that are not in the encoding become U+FFFD, each line reported."""
    if encoding == "auto":
        decoded = encodings.decode(raw)
        if decoded.trouble or decoded.how == "sniffed":
            told = decoded.trouble or f"read as {decoded.encoding}, by its bytes"
            report(Problem(place, None, told, "replaced"))
        return decoded.text
    if encoding == "utf-8" and raw.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in raw[:1000]:
        raise ShunterError("the text is UTF-16", where=place, mend="Set the source's `encoding: utf-16`.")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode(encoding)
    except LookupError:
        raise ShunterError(f"no encoding is called {encoding!r}", mend="Try utf-8 or cp1252.") from None
    except UnicodeDecodeError:
        for number, line in enumerate(raw.split(b"\n"), 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                bad = line[error.start]
                report(Problem(place, number, f"byte 0x{bad:02x} is not {encoding}", "replaced"))
        return raw.decode(encoding, errors="replace")


def page(raw: IO[bytes], name: str, place: str, report: Report) -> Iterator[Page]:
    """The page of an HTML file; none when it cannot be read, which is reported."""
    try:
        found = decompressed(raw, name.lower()).read(MAX_PAGE_BYTES + 1)
    except damage() as error:
        report(Problem(place, None, f"the file cannot be read: {error}", "skipped"))
        return
    if len(found) > MAX_PAGE_BYTES:
        report(Problem(place, None, f"a page of more than {MAX_PAGE_BYTES >> 20} MiB", "skipped"))
        return
    decoded = encodings.decode(found, markup=True)
    if decoded.trouble:
        report(Problem(place, None, decoded.trouble, "replaced"))
    yield Page(decoded.text, "", True, 1)


def jsonl(raw: IO[bytes], place: str, report: Report) -> Iterator[Record]:
    """The objects of a JSON-lines stream. A malformed or overlong line is reported and skipped."""
    number = 0
    try:
        for number, line in enumerate(iter(lambda: raw.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                size = len(line)
                while (rest := raw.readline(1 << 20)) and not rest.endswith(b"\n"):
                    size += len(rest)
                report(Problem(place, number, f"a line of {size + len(rest)} bytes", "skipped"))
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                report(Problem(place, number, f"byte 0x{line[error.start]:02x} is not utf-8", "skipped"))
                continue
            except (ValueError, RecursionError) as error:
                report(Problem(place, number, f"not JSON: {error}", "skipped"))
                continue
            if not isinstance(value, dict):
                report(Problem(place, number, f"a {type(value).__name__}, not an object", "skipped"))
                continue
            yield Record(place, number, value)
    except damage() as error:
        # A cut or damaged compressed file: what came before it is kept, the rest is named.
        report(Problem(place, number + 1, f"the compressed stream breaks off: {error}", "skipped"))


def parquet(
    file: Path | IO[bytes], place: str, columns: list[str] | None, report: Report
) -> Iterator[Record]:
    """The rows of a Parquet file as records, a batch in memory at a time.

    From a page that cannot be read on, the rest is reported and skipped.
    """
    table = opened(file, place, columns)
    number = 0
    batches = table.iter_batches(batch_size=1024, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            report(Problem(place, number + 1, f"the file breaks off: {error}", "skipped"))
            return
        if batch is None:
            return
        for fields in batch.to_pylist():
            number += 1
            yield Record(place, number, fields)


def opened(file: Path | IO[bytes], place: str, columns: list[str] | None) -> pq.ParquetFile:
    """A Parquet file whose footer has been read. Raises ShunterError when it is none, or lacks a column."""
    try:
        table = pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ShunterError(f"not a Parquet file ({error})", where=place) from error
    for column in columns or []:
        if column not in table.schema_arrow.names:
            raise ShunterError(
                f"no column {column!r}; there are {', '.join(table.schema_arrow.names)}",
                where=place,
                mend="Set the source's `field`.",
            )
    return table


def decompressed(raw: IO[bytes], name: str) -> IO[bytes]:
    """The stream behind .gz or .zst, else the stream itself."""
    if name.endswith(".gz"):
        return gzip.open(raw, "rb")  # type: ignore[return-value]
    if name.endswith(".zst"):
        import zstandard

        reader: Any = zstandard.ZstdDecompressor().stream_reader(raw)
        return io.BufferedReader(reader)
    return raw


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged compressed stream raises."""
    known: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, zipfile.BadZipFile)
    try:
        import zstandard
    except ImportError:
        return known
    return (*known, zstandard.ZstdError)
