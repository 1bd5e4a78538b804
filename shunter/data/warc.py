"""Pages of web archives (WARC), read by fastwarc; a damaged place costs the record that it is in.

(ISO 28500.) Of a `.warc.gz`, each record is a gzip member of its own: after damage the next member, or the
next line that begins with the format's name, is looked for and reading goes on there.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from shunter.data import encodings
from shunter.data.readers import MAX_PAGE_BYTES
from shunter.data.sources import Page, Problem

Report = Callable[[Problem], None]
HTML = ("text/html", "application/xhtml+xml")
_WINDOW = 1 << 20
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n")


def pages(file: IO[bytes], place: str, report: Report) -> Iterator[Page]:
    """The pages of an open file, in order: responses with status 200 and resources that are HTML, and plain
    text of conversions (WET). Other records are no pages; responses that are not read are counted by kind."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    others: Counter[str] = Counter()
    number, sound = 0, True  # sound: what came last was read, so damage is told
    begin: int | None = 0
    while begin is not None:
        last, got = begin, False
        try:
            for record in ArchiveIterator(_From(file, begin), record_types=wanted, strict_mode=False):
                last, got, sound = begin + record.stream_pos, True, True
                number += 1
                page = _page(record, number, place, report, others)
                if page is not None:
                    yield page
            begin = None
        except (OSError, ValueError) as error:
            if sound or got:
                what = f"the archive is damaged after byte {last}: {error}"
                report(Problem(place, number + 1, what, "skipped"))
            sound = False
            begin = _next(file, last + 1)
    for kind, count in sorted(others.items()):
        report(Problem(place, None, f"{count} {kind}", "skipped"))


class _From:
    """A file from some byte on, as if it began there."""

    def __init__(self, file: IO[bytes], begin: int) -> None:
        self._file, self._begin = file, begin
        file.seek(begin)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset + self._begin if whence == 0 else offset, whence) - self._begin

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def close(self) -> None:
        """The file is not ours to close."""


def _next(file: IO[bytes], begin: int) -> int | None:
    """Where a record may begin, from `begin` on: a gzip member, or a line with the format's name."""
    gzip, plain = b"\x1f\x8b\x08", b"\nWARC/1."
    file.seek(begin)
    base, held = begin, b""
    while block := file.read(_WINDOW):
        held += block
        found = [at for at in (held.find(gzip), held.find(plain)) if at >= 0]
        if found:
            at = min(found)
            return base + at + (held[at] == 10)
        keep = len(plain) - 1
        base += max(0, len(held) - keep)
        held = held[-keep:]
    return None


def _page(record: Any, number: int, place: str, report: Report, others: Counter[str]) -> Page | None:
    """A record's page, or None when it has none; why is said."""
    from fastwarc.warc import WarcRecordType

    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    kind, charset = record.headers.get("Content-Type") or "", None
    if record.record_type == WarcRecordType.response:
        if not record.is_http or record.http_headers is None:
            others["responses that are not HTTP"] += 1
            return None
        if record.http_headers.status_code != 200:
            others[f"responses with status {record.http_headers.status_code}"] += 1
            return None
        kind, charset = record.http_headers.get("Content-Type") or "", record.http_charset
    kind = kind.partition(";")[0].strip().lower()
    html = kind in HTML
    if not html and not (kind == "text/plain" and record.record_type == WarcRecordType.conversion):
        others[f"records of {kind if re.fullmatch('[a-z0-9.+/-]{1,60}', kind) else 'unknown kind'}"] += 1
        return None
    size = record.content_length
    raw = record.reader.read(MAX_PAGE_BYTES + 1)
    if len(raw) > MAX_PAGE_BYTES:
        report(Problem(place, number, f"a page of more than {MAX_PAGE_BYTES >> 20} MiB: {url}", "skipped"))
        return None
    if len(raw) < size:
        what = f"the record breaks off after {len(raw)} of {size} bytes: {url}"
        report(Problem(place, number, what, "skipped"))
        return None
    if record.http_headers is not None:
        try:
            raw = plain_body(raw, record.http_headers)
        except ValueError as error:
            report(Problem(place, number, f"{error}: {url}", "skipped"))
            return None
    if record.headers.get("WARC-Truncated"):
        others["pages were cut by the crawler, and are read as they are"] += 1
    decoded = encodings.decode(raw, charset, markup=html)
    if decoded.trouble:
        report(Problem(place, number, decoded.trouble, "replaced"))
    return Page(decoded.text, url, html, number)


def plain_body(raw: bytes, headers: Any) -> bytes:
    """A response's body without the codings of its transfer. Crawlers often undo them and leave the headers
    as they were: what does not look coded is taken as it is. Raises ValueError for what cannot be undone."""
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        raw = _unchunked(raw)
    coding = (headers.get("Content-Encoding") or "").strip().lower()
    if coding in ("gzip", "x-gzip") and raw.startswith(b"\x1f\x8b"):
        return _inflated(raw, 31)
    if coding == "deflate" and raw[:1] == b"\x78":
        return _inflated(raw, 15)
    if coding in ("br", "zstd") and b"<" not in raw[:2000]:
        raise ValueError(f"the body is coded as {coding}, which is not read")
    return raw


def _inflated(raw: bytes, window: int) -> bytes:
    try:
        inflater = zlib.decompressobj(window)
        found = inflater.decompress(raw, MAX_PAGE_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"the body cannot be inflated ({error})") from error
    if len(found) > MAX_PAGE_BYTES:
        raise ValueError(f"the body has more than {MAX_PAGE_BYTES >> 20} MiB")
    if not inflater.eof:
        raise ValueError("the compressed body breaks off")
    return found


def _unchunked(raw: bytes) -> bytes:
    """Chunks put together; `raw` itself when it is not in chunks to its end."""
    parts: list[bytes] = []
    at = 0
    while head := _CHUNK.match(raw, at):
        size = int(head[1], 16)
        if size == 0:
            return b"".join(parts)
        at = head.end()
        if at + size > len(raw):
            return raw
        parts.append(raw[at : at + size])
        at += size
        at += 2 if raw[at : at + 2] == b"\r\n" else raw[at : at + 1] == b"\n"
    return raw
