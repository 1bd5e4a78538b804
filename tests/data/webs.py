"""Made-up pages and web archives, for tests."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

WORDS = str.split(
    "the river past a town where boats rest until morning brings traders who know each lock and weir from "
    "their mothers' stories and count barges along quiet banks"
)


def paragraphs(draw: np.random.Generator, count: int) -> list[str]:
    """Sentences of 15 to 40 words, capital first and a full stop last."""
    found = []
    for _ in range(count):
        text = " ".join(draw.choice(WORDS, int(draw.integers(15, 40))).tolist())
        found.append(text[0].upper() + text[1:] + ".")
    return found


def page(body: list[str], charset: str = "utf-8", seed: int = 0, tables: bool = True) -> bytes:
    """An article between menus, comments and advertisements whose words are their own. tables: sometimes laid
    out by one."""
    draw = np.random.default_rng(seed)
    links = "".join(f'<li><a href="/{n}">Menu item {n}</a></li>' for n in range(12))
    comments = "".join(f"<p>Zebra remark, {text}</p>" for text in paragraphs(draw, 3))
    main = "".join(f"<p>{text}</p>" for text in body)
    wraps = ["<div class='x1'><div>{}</div></div>", "<article>{}</article>", "<table><tr><td>{}</table>"]
    wrap = str(draw.choice(wraps[: 3 if tables else 2]))
    return (
        f"<html><head><meta charset='{charset}'><title>Zebra title</title>"
        f"<script>zebra()</script></head><body>"
        f"<div class='menu'><ul>{links}</ul></div><div id='page'>{wrap.format(main)}"
        f"<div class='related-posts'><p>Zebra, {paragraphs(draw, 1)[0]}</p></div></div>"
        f"<div id='comments'>{comments}</div><footer><p>Zebra rights, {paragraphs(draw, 1)[0]}</p></footer>"
    ).encode(charset)


def record(
    url: str, body: bytes, kind: str = "text/html", status: int = 200, headers: str = "", of: str = "response"
) -> bytes:
    """One WARC record."""
    http = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\n{headers}\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {of}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{abs(hash(url)):032x}>\r\n"
        f"Content-Type: application/http; msgtype={of}\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def archive(path: Path, records: list[bytes]) -> None:
    """A `.warc` of the records, or a `.warc.gz` with a member each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = [gzip.compress(each, 1, mtime=0) for each in records] if path.suffix == ".gz" else records
    path.write_bytes(b"".join(packed))
