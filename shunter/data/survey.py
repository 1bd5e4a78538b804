"""Looks at a person's files: which formats, how much text, in which field."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from shunter.config.errors import MissingExtra, ShunterError

# Suffix -> format. The longest suffix counts.
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".zip": "zip",
}
# Fields that hold the text in most corpora, best first. Else the string field with the most text wins.
TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage", "completion", "answer")
SAMPLE_ROWS = 200
SAMPLE_BYTES = 4 << 20
MAX_FILES = 200_000


@dataclass(frozen=True)
class Found:
    """Files of one suffix below one folder, or one file.

    path:   the file, or a glob below the folder.
    suffix: with the dot; for an archive that of its members.
    bytes:  of text, estimated from a sample for compressed files and records.
    field:  that holds the text; None for plain text files and conversations.
    chat:   whether the records are conversations: `messages`, or `prompt` and `completion`.
    """

    path: str
    format: str
    suffix: str
    files: int
    bytes: int
    field: str | None = None
    chat: bool = False


def survey(paths: list[Path]) -> list[Found]:
    """What lies at `paths` (files, or folders with all below), the most text first.

    Hidden files, and files of other formats, are left out. Raises ShunterError if a path does not exist
    or no format is known, MissingExtra if files are compressed in a way that needs a package.
    """
    found: list[Found] = []
    for path in paths:
        if not path.exists():
            raise ShunterError("no such file or folder", where=str(path), mend="Check the path.")
        groups: dict[str, list[Path]] = {}
        for file in _files(path):
            if suffix := suffix_of(file.name):
                groups.setdefault(suffix, []).append(file)
        for suffix, files in groups.items():
            name = str(path) if path.is_file() else f"{path}/**/*{suffix}"
            found += _zipped(files) if suffix == ".zip" else [_group(name, suffix, files)]
    found = [group for group in found if group.bytes]
    if not found:
        known = ", ".join(FORMATS)
        raise ShunterError(
            "no text was found", where=", ".join(map(str, paths)), mend=f"Give files of these kinds: {known}."
        )
    return sorted(found, key=lambda group: (-group.bytes, group.path))


def suffix_of(name: str) -> str | None:
    """The known suffix of a file name, or None."""
    fits = [suffix for suffix in FORMATS if name.lower().endswith(suffix)]
    return max(fits, key=len) if fits else None


def pick_field(rows: list[Mapping[str, Any]]) -> str | None:
    """The field of records that holds the text, or None when no field holds strings."""
    sizes: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, str):
                sizes[key] = sizes.get(key, 0) + len(value.encode(errors="replace"))
    # A well-known name is trusted unless it holds next to nothing of the record.
    total = sum(sizes.values())
    for name in TEXT_FIELDS:
        if sizes.get(name, 0) * 5 > total:
            return name
    return max(sizes, key=lambda key: sizes[key]) if total else None


def is_chat(rows: list[Mapping[str, Any]]) -> bool:
    """Whether every record is a conversation."""

    def one(row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if isinstance(messages, list) and messages:
            return all(isinstance(m, Mapping) and "role" in m and "content" in m for m in messages)
        return isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)

    return bool(rows) and all(one(row) for row in rows)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    count = 0
    for folder, folders, names in os.walk(path):
        # An artefact store below would be read as data of its own making.
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "shunter-store")
        for name in sorted(names):
            if not name.startswith("."):
                count += 1
                if count > MAX_FILES:
                    raise ShunterError(
                        f"more than {MAX_FILES} files", where=str(path), mend="Name subfolders."
                    )
                yield Path(folder) / name


def _group(name: str, suffix: str, files: list[Path]) -> Found:
    kind = FORMATS[suffix]
    size = sum(file.stat().st_size for file in files)
    if kind == "text":
        return Found(name, kind, suffix, len(files), size)
    largest = max(files, key=lambda file: file.stat().st_size)
    if kind == "parquet":
        rows, ratio = _parquet_sample(largest)
    else:
        with largest.open("rb") as raw, _unpacked(raw, suffix) as stream:
            rows, read = _jsonl_sample(stream)
        ratio = _expansion(largest, suffix) if read else 0.0
        ratio *= _text_bytes(rows) / read if read else 0.0
    chat = is_chat(rows)
    return Found(name, kind, suffix, len(files), int(size * ratio), None if chat else pick_field(rows), chat)


def _zipped(files: list[Path]) -> list[Found]:
    """One entry for each archive and format of its members."""
    found = []
    for file in files:
        try:
            with zipfile.ZipFile(file) as archive:
                members: dict[str, list[zipfile.ZipInfo]] = {}
                for info in archive.infolist():
                    suffix = suffix_of(info.filename)
                    if suffix in (".txt", ".md", ".jsonl"):
                        members.setdefault(suffix, []).append(info)
                for suffix, infos in members.items():
                    size, field, chat = sum(info.file_size for info in infos), None, False
                    if FORMATS[suffix] == "jsonl":
                        with archive.open(max(infos, key=lambda info: info.file_size)) as stream:
                            rows, read = _jsonl_sample(stream)
                        size = int(size * _text_bytes(rows) / read) if read else 0
                        chat = is_chat(rows)
                        field = None if chat else pick_field(rows)
                    found.append(Found(str(file), "zip", suffix, len(infos), size, field, chat))
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ShunterError(f"not a readable zip archive ({error})", where=str(file)) from None
    return found


def _unpacked(raw: BinaryIO, suffix: str) -> IO[bytes]:
    if suffix.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if suffix.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", extra="zstd", purpose=f"reading {raw.name}") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))
    return raw


def _jsonl_sample(stream: IO[bytes]) -> tuple[list[Mapping[str, Any]], int]:
    """The first records and the bytes they took. Lines that are no records are left to the curate job."""
    rows: list[Mapping[str, Any]] = []
    read = 0
    while len(rows) < SAMPLE_ROWS and read < SAMPLE_BYTES:
        line = stream.readline(SAMPLE_BYTES)
        if not line:
            break
        read += len(line)
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, read


def _expansion(file: Path, suffix: str) -> float:
    """Bytes of JSON per byte on disk, from the file's beginning."""
    read = 0
    with file.open("rb") as raw, _unpacked(raw, suffix) as stream:
        while read < SAMPLE_BYTES and (part := stream.read(1 << 16)):
            read += len(part)
        return read / max(1, raw.tell())


def _parquet_sample(file: Path) -> tuple[list[Mapping[str, Any]], float]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            batch = next(table.iter_batches(batch_size=SAMPLE_ROWS), None)
            rows = batch.to_pylist() if batch is not None else []
            share = _text_bytes(rows) * table.metadata.num_rows / max(1, len(rows))
            return rows, share / max(1, file.stat().st_size)
    except pa.ArrowInvalid as error:
        raise ShunterError(f"not a readable Parquet file ({error})", where=str(file)) from None


def _text_bytes(rows: list[Mapping[str, Any]]) -> int:
    """Bytes of the text that would be trained on."""
    if is_chat(rows):
        texts = [
            str(part)
            for row in rows
            for part in (
                [m["content"] for m in row["messages"]]
                if "messages" in row
                else [row["prompt"], row["completion"]]
            )
        ]
    else:
        field = pick_field(rows)
        texts = [row[field] for row in rows if field and isinstance(row.get(field), str)]
    return sum(len(text.encode(errors="replace")) for text in texts)
