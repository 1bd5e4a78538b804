"""Text files of any size in bounded memory: a file of more than LONG bytes is read as several texts.

A corpus's documents are held whole by whoever works on them, so there must be a bound. Cuts fall between
paragraphs where there are some, else between lines, else between words; the texts one after another are the
file. That a file was cut is told.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, TypeVar

from shunter.data import encodings, readers
from shunter.data.sources import Problem, Report

LONG = 1 << 26  # bytes: what is longer is no one document for any limit but one that a person has raised
PIECE = 1 << 23  # bytes of a text of such a file, at most; characters of one in UTF-16 or UTF-32
_MARKS = (b"\n\n", b"\r\n\r\n", b"\n", b"\r", b" ")
T = TypeVar("T", str, bytes)


def texts(raw: IO[bytes], place: str, encoding: str, report: Report) -> Iterator[str]:
    """A text file's content; of one of more than LONG bytes, as texts of half a PIECE to one."""
    head = raw.read(LONG + 1)
    if len(head) <= LONG:
        yield readers.text(head, place, encoding, report)
        return
    if encoding == "auto":
        decoded = encodings.decode(head[: _cut(head, PIECE, _MARKS)])
        encoding = decoded.encoding
        if decoded.how == "sniffed":
            report(Problem(place, None, f"read as {encoding}, by its first {PIECE >> 20} MiB", "replaced"))
    if encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32")):
        made = _wide(raw, head, place, encoding, report)
    else:
        made = _narrow(raw, head, place, encoding, report)
    del head
    count = 0
    for text in made:
        count += 1
        yield text
    report(Problem(place, None, f"more than {LONG >> 20} MiB, read as {count} documents", "parted"))


def _narrow(raw: IO[bytes], head: bytes, place: str, encoding: str, report: Report) -> Iterator[str]:
    """In encodings whose line feed is one byte of its own."""
    lines = 0
    for piece in _pieces(head, raw, _MARKS):
        before = lines

        def moved(problem: Problem, before: int = before) -> None:
            report(problem if problem.line is None else replace(problem, line=problem.line + before))

        yield readers.text(piece, place, encoding, moved)
        lines += piece.count(b"\n")


def _wide(raw: IO[bytes], head: bytes, place: str, encoding: str, report: Report) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    marks = tuple(mark.decode() for mark in _MARKS)
    held, bad, block = "", 0, head
    while True:
        held += decoder.decode(block, final=not block)
        while len(held) > PIECE:
            at = _cut(held, PIECE, marks)
            piece, held = held[:at], held[at:]
            bad += piece.count("�")
            yield piece
        if not block:
            break
        block = raw.read(PIECE)
    if held:
        bad += held.count("�")
        yield held
    if bad:
        report(Problem(place, None, f"{bad} places are not {encoding}", "replaced"))


def _pieces(head: bytes, raw: IO[bytes], marks: tuple[bytes, ...]) -> Iterator[bytes]:
    held, at = head, 0
    while True:
        while len(held) - at > PIECE:
            end = at + _cut(held[at : at + PIECE + 1], PIECE, marks)
            yield held[at:end]
            at = end
        held, at = held[at:], 0
        block = raw.read(PIECE)
        if not block:
            break
        held += block
    if held:
        yield held


def _cut(held: T, size: int, marks: tuple[T, ...]) -> int:
    """Where a text of at most `size` may end: after the last mark in its later half, of the first kind that
    is there; else before a character. At the end, if it is no longer."""
    if len(held) <= size:
        return len(held)
    for mark in marks:
        at = held.rfind(mark, size // 2, size)
        if at >= 0:
            return at + len(mark)
    at = size
    if isinstance(held, bytes):
        while at > size - 4 and held[at] & 0xC0 == 0x80:  # inside a character of UTF-8
            at -= 1
    return at
