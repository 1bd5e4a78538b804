"""Where text comes from: folders, globs, archives; and what was wrong with it, by file and line."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field

from shunter.config.base import Config
from shunter.config.errors import MissingExtra, ShunterError
from shunter.data.meter import Meter

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
ARCHIVE = ".zip"
PAGES = (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz")
CRAWLS = (".warc", ".warc.gz", ".wet", ".wet.gz")
Extractor = Literal["fast", "resiliparse", "trafilatura", "trafilatura-precise"]


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
        "utf-8",
        description="Of text files; what does not fit is replaced, counted and reported; auto: by its bytes.",
    )
    url: str | None = Field(
        None, description="For JSONL and Parquet: the field that holds the document's address on the web."
    )
    extract: Extractor | None = Field(
        None,
        description="How the main text of web pages is found; default fast, for HTML files and web archives. "
        "With JSONL and Parquet: the field holds HTML.",
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
    """A text with its place: row counts the source's documents from 0, in order of file and line.

    extract: how the main text is to be found, where `text` is a web page's markup; else "".
    """

    source: str
    row: int
    text: str
    url: str = ""
    extract: str = ""

    @property
    def id(self) -> str:
        return f"{self.source}:{self.row}"


@dataclass(frozen=True)
class Problem:
    """Something that could not be read as it stood. `action`: what was done about it."""

    file: str
    line: int | None
    problem: str
    action: Literal["replaced", "skipped", "parted"]


Report = Callable[[Problem], None]


@dataclass(frozen=True)
class Page:
    """A web page. text: HTML, or plain text where `html` is false. line: the record's number in its file."""

    text: str
    url: str
    html: bool
    line: int


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
        found = [p for p in path.rglob("*") if p.is_file() and kind_of(p.name)]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    if not found:
        raise ShunterError(
            f"source {source.label!r} has no files", where=str(path), mend="Correct its path in the recipe."
        )
    for file in found:
        if kind_of(file.name) is None:
            raise ShunterError(
                f"source {source.label!r} has a file of unknown kind",
                where=str(file),
                mend=f"Known endings: {' '.join((*TEXT, *RECORDS, *PAGES, *CRAWLS, ARCHIVE))}.",
            )
        if file.name.endswith(".zst") and find_spec("zstandard") is None:
            raise MissingExtra("zstandard", extra="zstd", purpose=f"Reading {file.name}")
        if "crawl" in kinds_in(source, file) and find_spec("fastwarc") is None:
            raise MissingExtra("fastwarc", extra="web", purpose=f"Reading {file.name}")
    if holds_pages(source, base, found):
        for package in EXTRACTORS[source.extract or "fast"]:
            if find_spec(package) is None:
                raise MissingExtra(package, extra="web", purpose="Finding the main text of web pages")
    return sorted(found)


EXTRACTORS = {
    "fast": ("lxml", "resiliparse", "trafilatura"),
    "resiliparse": ("resiliparse",),
    "trafilatura": ("trafilatura",),
    "trafilatura-precise": ("trafilatura",),
}


def holds_pages(source: SourceConfig, base: Path, found: list[Path] | None = None) -> bool:
    """Whether some of the source's documents are web pages. found: its files, where they are known."""
    paths = files(source, base) if found is None else found
    return source.extract is not None or any(kinds_in(source, path) & {"page", "crawl"} for path in paths)


def has_urls(source: SourceConfig, base: Path) -> bool:
    """Whether the source's documents have addresses."""
    return source.url is not None or any("crawl" in kinds_in(source, path) for path in files(source, base))


def kinds_in(source: SourceConfig, path: Path) -> frozenset[str | None]:
    """The kind of a file, or those of the members of an archive that are read; of a broken one, none."""
    from shunter.data import archives

    kind = kind_of(path.name)
    if kind != "archive":
        return frozenset({kind})
    try:
        told = path.stat()
        return archives.kinds(source.members, path, told.st_mtime_ns, told.st_size)
    except (ShunterError, OSError):  # told when it is read
        return frozenset()


def documents(
    source: SourceConfig, base: Path, report: Report, *, as_pages: bool = False, meter: Meter | None = None
) -> Iterator[Document]:
    """Every document of a source, in order; what cannot be read is reported, never silently dropped.

    as_pages: web pages are given as their markup, for others to extract the text: that is the dear part.
    meter: tells how far the reading is.
    """
    from shunter.data import templates

    row = 0
    to_text = templates.to_text(source)
    for item in _everything(source, base, report, whole=False, meter=meter or Meter()):
        url = extractor = ""
        place: tuple[str, int | None] = (source.label, None)
        if isinstance(item, Record):
            found = to_text(item, report)
            if found is None:
                continue
            text, extractor, place = found, source.extract or "", (item.file, item.line)
            found = str(item.fields.get(source.url) or "") if source.url else ""
            url = found.encode("utf-8", "replace").decode()  # half a surrogate pair could not be written
        elif isinstance(item, Page):
            text, url, extractor = item.text, item.url, (source.extract or "fast") if item.html else ""
        else:
            text = item
        if extractor and not as_pages:
            text, extractor = _extracted(text, extractor, *place, report), ""
        yield Document(source.label, row, text, url, extractor)
        row += 1


def _extracted(html: str, method: str, file: str, line: int | None, report: Report) -> str:
    from shunter.data import guarded

    found = guarded.extract(html, method)
    if found.error:
        report(Problem(file, line, f"no text of a page: {found.error}", "skipped"))
    return found.text


def contents(
    source: SourceConfig, base: Path, report: Report, *, whole: bool = False
) -> Iterator[str | Record]:
    """Texts of text files and web pages and records of record files, in order of file and line.

    whole: records have all their fields, not only those that make the text.
    """
    for item in _everything(source, base, report, whole, Meter()):
        if isinstance(item, Page):
            method = source.extract or "fast"
            yield _extracted(item.text, method, source.label, item.line, report) if item.html else item.text
        else:
            yield item


def _everything(
    source: SourceConfig, base: Path, report: Report, whole: bool, meter: Meter
) -> Iterator[str | Record | Page]:
    from shunter.data import archives, pieces, readers

    for path in files(source, base):
        shown = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
        if path.name.lower().endswith(ARCHIVE):
            yield from archives.contents(source, path, shown, report, whole=whole)
        elif kind_of(path.name) == "text":
            with meter.opened(path) as raw:
                yield from pieces.texts(raw, shown, source.encoding, report)
        elif path.name.lower().endswith(".parquet"):
            yield from readers.parquet(path, shown, columns(source, whole), report)
        elif kind_of(path.name) == "page":
            with meter.opened(path) as raw:
                yield from readers.page(raw, path.name, shown, report)
        elif kind_of(path.name) == "crawl":
            from shunter.data import warc

            with meter.opened(path) as raw:
                yield from warc.pages(raw, shown, report)
        else:
            with meter.opened(path) as raw:
                yield from readers.jsonl(readers.decompressed(raw, path.name), shown, report)
        meter.finished(path)


def columns(source: SourceConfig, whole: bool = False) -> list[str] | None:
    """Columns of a Parquet file that are needed; None: all, for a template or whole records."""
    if source.template or whole:
        return None
    return [source.field, source.url] if source.url and source.url != source.field else [source.field]


def left_out(source: SourceConfig, base: Path) -> dict[str, int]:
    """Ending -> number of files of no known kind in the source's folder and archives, which are not read."""
    from shunter.data import archives

    folder = base / source.path
    others: list[PurePath] = []
    if folder.is_dir():
        others = [path for path in folder.rglob("*") if path.is_file() and not kind_of(path.name)]
    for path in files(source, base):
        if path.name.lower().endswith(ARCHIVE):
            others += [PurePath(info.filename) for info in archives.members(source, path)[1]]
    return dict(Counter(path.suffix.lower() or path.name for path in others))


def kind_of(name: str) -> str | None:
    """text, page, crawl, records or archive, by the ending; None: not read."""
    lower = name.lower()
    if lower.endswith(PAGES):
        return "page"
    if lower.endswith(CRAWLS):
        return "crawl"
    if lower.endswith(TEXT):
        return "text"
    if lower.endswith(RECORDS):
        return "records"
    return "archive" if lower.endswith(ARCHIVE) else None
