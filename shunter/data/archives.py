"""Zip archives as sources: which members are read, which are left out, and their contents."""

from __future__ import annotations

import fnmatch
import io
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.data.sources import ARCHIVE, Page, Problem, Record, Report, SourceConfig, columns, kind_of

MAX_MEMBER_BYTES = 1 << 30  # a larger member is more likely a bomb than a document


def members(source: SourceConfig, path: Path) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    """The members to read, by name, and those that are left out because nothing here reads their kind.

    A member that `source.members` does not match is neither: a person chose. Archives inside archives are
    not read. Raises ShunterError for what is no archive, and when there is no member to read.
    """
    return _members(source.members, path)


def _members(chosen: str | None, path: Path) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename)
    except (zipfile.BadZipFile, OSError) as error:
        raise ShunterError(f"not a zip archive ({error})", where=str(path)) from error
    if chosen is not None:
        infos = [info for info in infos if fnmatch.fnmatch(info.filename, chosen)]
        others = [info for info in infos if _nested(info)]
    else:
        others = [info for info in infos if _nested(info) or kind_of(info.filename) is None]
    left = {info.filename for info in others}
    wanted = [info for info in infos if info.filename not in left]
    if not wanted:
        found = f"; {len(others)} of other kinds are there" if others else ""
        raise ShunterError(
            f"no member of the archive matches {chosen or 'a known ending'!r}{found}",
            where=str(path),
            mend="Correct the source's `members`, a glob such as '*.txt'.",
        )
    return wanted, others


@lru_cache(maxsize=64)
def kinds(chosen: str | None, path: Path, changed: int, size: int) -> frozenset[str | None]:
    """The kinds of the members that are read. changed, size: of the file, as it is asked for again and again.

    Raises ShunterError as `members` does.
    """
    return frozenset(kind_of(info.filename) for info in _members(chosen, path)[0])


def contents(
    source: SourceConfig, path: Path, shown: str, report: Report, *, whole: bool = False
) -> Iterator[str | Record | Page]:
    """Texts, records and pages of an archive's members, in order of name; what is not read is reported."""
    from shunter.data import readers

    wanted, others = members(source, path)
    for info in others:
        what = "an archive inside an archive" if _nested(info) else "a kind that is not read"
        report(Problem(f"{shown}!{info.filename}", None, f"the member is {what}", "skipped"))
    with zipfile.ZipFile(path) as archive:
        for info in wanted:
            place = f"{shown}!{info.filename}"
            if info.file_size > MAX_MEMBER_BYTES:
                report(Problem(place, None, f"the member is {info.file_size >> 20} MiB", "skipped"))
                continue
            try:
                yield from _member(source, archive, info, place, report, whole)
            except readers.damage() as error:
                report(Problem(place, None, f"the member cannot be read: {error}", "skipped"))
            except (RuntimeError, NotImplementedError) as error:  # a password, or a method unknown here
                report(Problem(place, None, f"the member cannot be opened: {error}", "skipped"))


def _member(
    source: SourceConfig,
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    place: str,
    report: Report,
    whole: bool,
) -> Iterator[str | Record | Page]:
    """One member of an archive. Members are read, never unpacked: no path can escape."""
    from shunter.data import pieces, readers

    with archive.open(info) as raw:
        if info.filename.lower().endswith(".parquet"):
            table = io.BytesIO(raw.read(MAX_MEMBER_BYTES))
            yield from readers.parquet(table, place, columns(source, whole), report)
        elif kind_of(info.filename) == "records":
            yield from readers.jsonl(readers.decompressed(raw, info.filename), place, report)
        elif kind_of(info.filename) == "page":
            yield from readers.page(raw, info.filename, place, report)
        elif kind_of(info.filename) == "crawl":
            from shunter.data import warc

            yield from warc.pages(raw, place, report)
        else:
            yield from pieces.texts(raw, place, source.encoding, report)


def _nested(info: zipfile.ZipInfo) -> bool:
    return info.filename.lower().endswith(ARCHIVE)
