"""Where text comes from: folders, globs, archives; and what was wrong with it, by file and line."""

from __future__ import annotations

import fnmatch
import glob
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shunter.config.base import Config
from shunter.config.errors import MissingExtra, ShunterError

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
ARCHIVE = ".zip"
MAX_MEMBER_BYTES = 1 << 30  # a larger zip member is more likely a bomb than a document


class SourceConfig(Config):
    """One source of documents."""

    name: str = Field(
        "", pattern=r"^[\w.-]*$", description="Name in document ids and tables; default: from the path."
    )
    path: str = Field(description="A file, a folder or a glob, relative to the recipe.")
    members: str | None = Field(None, description="For zip archives: glob of the members to read.")
    field: str = Field("text", description="For JSONL and Parquet: the field that holds the text.")
    template: str | None = Field(
        None,
        description="For JSONL and Parquet: Jinja text over the record's fields, instead of `field`; "
        "the filter `without(PATTERN)` leaves out what a regular expression matches.",
    )
    encoding: str = Field(
        "utf-8", description="Of text files; what does not fit is replaced, counted and reported."
    )
    licence: str | None = Field(None, description="Under which terms the text may be used.")

    @property
    def label(self) -> str:
        """`name`, or what stands for it: the last part of the path that has no wildcard."""
        if self.name:
            return self.name
        parts = [part for part in Path(self.path).parts if not set(part) & set("*?[")]
        stem = Path(parts[-1]).name.split(".")[0] if parts else ""
        return re.sub(r"[^\w-]+", "-", stem).strip("-") or "text"


@dataclass(frozen=True)
class Document:
    """A text with its place: row counts the source's documents from 0, in order of file and line."""

    source: str
    row: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.source}:{self.row}"


@dataclass(frozen=True)
class Problem:
    """Something that could not be read as it stood. `action`: what was done about it."""

    file: str
    line: int | None
    problem: str
    action: Literal["replaced", "skipped"]


Report = Callable[[Problem], None]


@dataclass(frozen=True)
class Record:
    """One JSON or Parquet record, with its file and line (from 1)."""

    file: str
    line: int
    fields: dict[str, Any]


def files(source: SourceConfig, base: Path) -> list[Path]:
    """The source's files, sorted. Raises ShunterError when there is none, or an extra is missing."""
    path = base / source.path
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _kind(p.name)]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    if not found:
        raise ShunterError(
            f"source {source.label!r} has no files", where=str(path), mend="Correct its path in the recipe."
        )
    for file in found:
        if _kind(file.name) is None:
            raise ShunterError(
                f"source {source.label!r} has a file of unknown kind",
                where=str(file),
                mend=f"Known endings: {' '.join((*TEXT, *RECORDS, ARCHIVE))}.",
            )
        if file.name.endswith(".zst") and find_spec("zstandard") is None:
            raise MissingExtra("zstandard", extra="zstd", purpose=f"Reading {file.name}")
    return sorted(found)


def documents(source: SourceConfig, base: Path, report: Callable[[Problem], None]) -> Iterator[Document]:
    """Every document of a source, in order; what cannot be read is reported, never silently dropped."""
    row = 0
    to_text = _template(source)
    for item in contents(source, base, report):
        if isinstance(item, Record):
            text = to_text(item, report)
            if text is None:
                continue
        else:
            text = item
        yield Document(source.label, row, text)
        row += 1


def contents(source: SourceConfig, base: Path, report: Callable[[Problem], None]) -> Iterator[str | Record]:
    """Texts of text files and records of record files, in order of file and line."""
    from shunter.data import readers

    for path in files(source, base):
        shown = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
        if path.name.endswith(ARCHIVE):
            yield from _archive(source, path, shown, report)
        elif _kind(path.name) == "text":
            yield readers.text(path.read_bytes(), shown, source.encoding, report)
        elif path.name.endswith(".parquet"):
            yield from readers.parquet(path, shown, _columns(source), report)
        else:
            with path.open("rb") as raw:
                yield from readers.jsonl(readers.decompressed(raw, path.name), shown, report)


def _archive(source: SourceConfig, path: Path, shown: str, report: Report) -> Iterator[str | Record]:
    from shunter.data import readers

    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ShunterError(f"not a zip archive ({error})", where=str(path)) from error
    with archive:
        matched = False
        for info in sorted(archive.infolist(), key=lambda i: i.filename):
            wanted = (
                fnmatch.fnmatch(info.filename, source.members) if source.members else _kind(info.filename)
            )
            if info.is_dir() or not wanted or info.filename.endswith(ARCHIVE):
                continue
            matched = True
            place = f"{shown}!{info.filename}"
            if info.file_size > MAX_MEMBER_BYTES:
                report(Problem(place, None, f"the member is {info.file_size >> 20} MiB", "skipped"))
                continue
            try:
                yield from _member(source, archive, info, place, report)
            except readers.damage() as error:
                report(Problem(place, None, f"the member cannot be read: {error}", "skipped"))
            except (RuntimeError, NotImplementedError) as error:  # a password, or a method unknown here
                report(Problem(place, None, f"the member cannot be opened: {error}", "skipped"))
        if not matched:
            raise ShunterError(
                f"no member of the archive matches {source.members or 'a known ending'!r}", where=str(path)
            )


def _member(
    source: SourceConfig, archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str, report: Report
) -> Iterator[str | Record]:
    """One member of an archive. Members are read, never unpacked: no path can escape."""
    from shunter.data import readers

    with archive.open(info) as raw:
        if info.filename.lower().endswith(".parquet"):
            whole = io.BytesIO(raw.read(MAX_MEMBER_BYTES))
            yield from readers.parquet(whole, place, _columns(source), report)
        elif _kind(info.filename) == "records":
            yield from readers.jsonl(readers.decompressed(raw, info.filename), place, report)
        else:
            yield readers.text(raw.read(MAX_MEMBER_BYTES), place, source.encoding, report)


def _columns(source: SourceConfig) -> list[str] | None:
    """Columns of a Parquet file that are needed; None: all, for a template."""
    return None if source.template else [source.field]


def left_out(source: SourceConfig, base: Path) -> dict[str, int]:
    """Ending -> number of files in the source's folder that are of no known kind, and are not read."""
    folder = base / source.path
    if not folder.is_dir():
        return {}
    others = (path for path in folder.rglob("*") if path.is_file() and not _kind(path.name))
    return dict(Counter(path.suffix.lower() or path.name for path in others))


def _template(source: SourceConfig) -> Callable[[Record, Callable[[Problem], None]], str | None]:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = None
    if source.template is not None:
        try:
            environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
            environment.filters["without"] = _without
            template = environment.from_string(source.template)
        except jinja2.TemplateError as error:
            raise ShunterError(f"the template of source {source.label!r} is not valid: {error}") from error

    def to_text(record: Record, report: Callable[[Problem], None]) -> str | None:
        if template is not None:
            try:
                return template.render(record.fields)
            except (jinja2.TemplateError, TypeError, re.error) as error:
                report(Problem(record.file, record.line, f"the template fails: {error}", "skipped"))
                return None
        value = record.fields.get(source.field)
        if not isinstance(value, str):
            what = (
                "is missing" if source.field not in record.fields else f"is {type(value).__name__}, not text"
            )
            report(Problem(record.file, record.line, f"field {source.field!r} {what}", "skipped"))
            return None
        return value

    return to_text


def _without(text: str, pattern: str) -> str:
    return re.sub(pattern, "", text)


def _kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(TEXT):
        return "text"
    if lower.endswith(RECORDS):
        return "records"
    return "archive" if lower.endswith(ARCHIVE) else None
