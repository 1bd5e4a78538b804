"""Web archives: every sound record is read whatever is broken beside it, and what is not read is told."""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest

from shunter.data import sources, warc
from shunter.data.sources import Page, Problem, SourceConfig
from tests.data.webs import archive, page, paragraphs, record


def read(path: Path) -> tuple[list[Page], list[Problem]]:
    problems: list[Problem] = []
    with path.open("rb") as file:
        return list(warc.pages(file, path.name, problems.append)), problems


def records(count: int, seed: int = 0) -> list[bytes]:
    draw = np.random.default_rng(seed)
    return [
        record(f"https://a.example/{n}", page(paragraphs(draw, 3), seed=n), "text/html; charset=utf-8")
        for n in range(count)
    ]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_with_their_addresses(tmp_path: Path, name: str) -> None:
    archive(tmp_path / name, records(5))
    found, problems = read(tmp_path / name)
    assert [each.url for each in found] == [f"https://a.example/{n}" for n in range(5)]
    assert all(each.html and each.text.startswith("<html>") for each in found)
    assert not problems


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_files_split_anywhere_give_the_same_documents(tmp_path: Path, name: str) -> None:
    every = records(9)
    made = []
    for cuts in ([0, 9], [0, 1, 4, 9], list(range(10))):
        folder = tmp_path / str(len(cuts))
        for part, (low, high) in enumerate(itertools.pairwise(cuts)):
            archive(folder / f"{part:02}{name}", every[low:high])
        source = SourceConfig(name="web", path=str(folder))
        found = list(sources.documents(source, tmp_path, lambda problem: None, as_pages=True))
        made.append([(each.id, each.url, each.text, each.extract) for each in found])
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 9


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize("seed", range(6))
def test_damage_costs_what_is_damaged(tmp_path: Path, name: str, seed: int) -> None:
    """Bytes of one record overwritten, at any place; all others come."""
    draw = np.random.default_rng(seed)
    every = records(6, seed)
    archive(tmp_path / name, every)
    raw = bytearray((tmp_path / name).read_bytes())
    sizes = [len(gzip.compress(r, 1, mtime=0)) if name.endswith("gz") else len(r) for r in every]
    begins = np.cumsum([0, *sizes])
    hurt = int(draw.integers(0, 6))
    # Gzip: anywhere in the member. Plain: its head, for a body has no check sum that could be missed.
    size = sizes[hurt] - 60 if name.endswith("gz") else 1
    at = int(begins[hurt]) + int(draw.integers(0, size))
    raw[at : at + 40] = bytes(draw.integers(0, 256, 40, dtype=np.uint8))
    (tmp_path / name).write_bytes(raw)
    found, problems = read(tmp_path / name)
    urls = {each.url for each in found}
    assert {f"https://a.example/{n}" for n in range(6) if n != hurt} <= urls
    assert len(urls) == 6 or problems
    assert len(problems) <= 2


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_cut_file_and_garbage(tmp_path: Path, name: str) -> None:
    archive(tmp_path / name, records(3))
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[:-200])
    found, problems = read(tmp_path / name)
    assert [each.url[-1] for each in found] == ["0", "1"]
    assert len(problems) == 1
    assert "breaks off" in problems[0].problem or "damaged" in problems[0].problem
    for junk in (b"", b"no archive at all\n" * 99, bytes(range(256)) * 99, gzip.compress(b"text" * 99)):
        (tmp_path / name).write_bytes(junk)
        found, problems = read(tmp_path / name)
        assert not found
        assert len(problems) == (1 if junk else 0)


def test_what_is_no_page_is_counted(tmp_path: Path) -> None:
    body = page(paragraphs(np.random.default_rng(0), 3))
    archive(
        tmp_path / "a.warc.gz",
        [
            record("https://a/0", body),
            record("https://a/1", b"%PDF", "application/pdf"),
            record("https://a/2", b"%PDF", "application/pdf"),
            record("https://a/3", body, status=404),
            record("https://a/4", body, of="request"),
            record("https://a/5", b"\x00" * (warc.MAX_PAGE_BYTES + 5)),
            record("https://a/6", body, "TEXT/HTML"),
        ],
    )
    found, problems = read(tmp_path / "a.warc.gz")
    assert [each.url for each in found] == ["https://a/0", "https://a/6"]
    assert [p.problem for p in problems] == [
        "a page of more than 8 MiB: https://a/5",
        "2 records of application/pdf",
        "1 responses with status 404",
    ]


def test_codings_of_the_transfer(tmp_path: Path) -> None:
    body = page(paragraphs(np.random.default_rng(0), 3))
    chunked = b"%x\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\n\r\n" % (7, body[:7], len(body) - 7, body[7:])
    both = "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"
    packed = gzip.compress(body)
    every = [
        record("https://a/0", chunked, headers="Transfer-Encoding: chunked\r\n"),
        record("https://a/1", packed, headers="Content-Encoding: gzip\r\n"),
        record("https://a/2", zlib.compress(body), headers="Content-Encoding: deflate\r\n"),
        record("https://a/3", b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed), headers=both),
        record("https://a/4", body, headers=both),  # undone by the crawler, its headers left
    ]
    archive(tmp_path / "a.warc", every)
    found, problems = read(tmp_path / "a.warc")
    assert [each.text for each in found] == [body.decode()] * 5
    assert not problems
    bomb = gzip.compress(b"\0" * (warc.MAX_PAGE_BYTES + 1))
    archive(
        tmp_path / "b.warc",
        [
            record("https://b/0", packed[:-20], headers="Content-Encoding: gzip\r\n"),
            record("https://b/1", bomb, headers="Content-Encoding: gzip\r\n"),
            record("https://b/2", b"\x8b\x00" * 99, headers="Content-Encoding: br\r\n"),
        ],
    )
    found, problems = read(tmp_path / "b.warc")
    assert not found
    assert [p.line for p in problems] == [1, 2, 3]


def test_charsets(tmp_path: Path) -> None:
    body = "<p>Он сказал: мир, труд, май, и больше ничего.</p>"
    archive(
        tmp_path / "a.warc",
        [
            record("https://a/0", body.encode("cp1251"), "text/html; charset=windows-1251"),
            record("https://a/1", f"<meta charset=koi8-r>{body}".encode("koi8-r")),
            record("https://a/2", body.encode(), "text/html; charset=iso-8859-1"),
        ],
    )
    found, problems = read(tmp_path / "a.warc")
    assert [each.text.removeprefix("<meta charset=koi8-r>") for each in found] == [body] * 3
    assert [(p.line, p.problem) for p in problems] == [(3, "declared cp1252, read as utf-8")]
