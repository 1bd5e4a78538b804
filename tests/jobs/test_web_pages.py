"""curate reads web archives and HTML: the same rows for any cut, and a record for each page that left."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data import guarded, sources
from shunter.data.curation import extract
from shunter.data.curation.why import why
from shunter.data.extraction import Extracted
from shunter.jobs import curate
from tests.data.webs import archive, page, paragraphs, record
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import FILES, lines

CONFIG: dict[str, Any] = {
    "sources": [{"name": "web", "path": "web", "licence": "mine"}],
    "operators": [{"kind": "near-duplicates"}],
    "heldout": 0.2,
    "min_chars": 50,
}


def bodies(count: int) -> list[list[str]]:
    draw = np.random.default_rng(7)
    found = [paragraphs(draw, 4) for _ in range(count)]
    found[5] = found[2]
    return found


def test_files_workers_and_chunks_change_nothing(tmp_path: Path, work: Work) -> None:
    every = [
        record(f"https://a.example/{n}", page(body, seed=n, tables=False))
        for n, body in enumerate(bodies(24))
    ]
    every[9] = record("https://a.example/9", b"<html><body><p>Too short, and that is all.</p></body></html>")
    made = []
    for files, chunk, workers in ((1, 10**9, 1), (5, 3000, 2)):
        base = tmp_path / str(files)
        size = -(-len(every) // files)
        for part in range(files):
            archive(base / "web" / f"{part}.warc.gz", every[part * size : (part + 1) * size])
        how = {"workers": workers, "chunk_chars": chunk}
        out, _ = work(curate.JOB, {**CONFIG, "how": how}, base=base, name=f"n{files}")
        made.append({name: (out / name).read_bytes() for name in FILES})
    assert made[0] == made[1]
    table = pq.read_table(out / "train").to_pylist() + pq.read_table(out / "heldout").to_pylist()
    assert {row["id"]: (row["text"], row["url"]) for row in table} == {
        f"web:{n}": ("\n".join(body), f"https://a.example/{n}")
        for n, body in enumerate(bodies(24))
        if n not in (5, 9)
    }
    reasons = {r["id"]: (r["operator"], r["reason"]) for r in lines(out / "dropped.jsonl")}
    assert reasons == {"web:5": ("exact-duplicates", "duplicate"), "web:9": ("extract", "too short")}
    assert why(out, "web:5")["of"] == "web:2"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["operators"][0]["edits"]["pages by fast"] > 10


def test_folders_of_html_and_columns(tmp_path: Path, work: Work) -> None:
    (tmp_path / "web").mkdir()
    every = bodies(6)
    (tmp_path / "web" / "0.html").write_bytes(page(every[0]))
    (tmp_path / "web" / "1.htm.gz").write_bytes(gzip.compress(page(every[1])))
    (tmp_path / "web" / "2.html").write_bytes(b"")
    (tmp_path / "web" / "3.html.gz").write_bytes(gzip.compress(page(every[1]))[:-30])
    rows = [{"html": page(every[2]).decode(), "at": "https://b.example"}, {"html": "<p>", "at": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "sources": [
            {"name": "web", "path": "web"},
            {"name": "rows", "path": "rows.jsonl", "field": "html", "url": "at", "extract": "trafilatura"},
        ],
        "heldout": 0,
    }
    out, metrics = work(curate.JOB, config)
    table = pq.read_table(out / "train").to_pylist()
    assert [(row["id"], row["url"]) for row in table] == [
        ("web:0", ""),
        ("web:1", ""),
        ("rows:0", "https://b.example"),
    ]
    assert table[0]["text"] == "\n".join(every[0])
    assert {r["id"]: r["reason"] for r in lines(out / "dropped.jsonl")} == {
        "web:2": "no main text",
        "rows:1": "no main text",
    }
    assert metrics["problems"] == 1  # the damaged file


def test_an_absent_extra_and_sections_are_refused(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "web" / "0.warc", [record("https://a/0", b"<p>")])
    with pytest.raises(ShunterError, match="web pages, which are not taken apart"):
        work(curate.JOB, {**CONFIG, "section_chars": 1000})
    for absent in ("fastwarc", "trafilatura"):
        with monkeypatch.context() as patch:
            patch.setattr(sources, "find_spec", lambda name, absent=absent: None if name == absent else 1)
            with pytest.raises(MissingExtra, match=r"shunter\[web\]"):
                work(curate.JOB, CONFIG)


def test_a_page_that_takes_too_long_leaves_with_a_record(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one with too much markup is not even begun."""
    every = [
        record(f"https://a.example/{n}", page(body, tables=False)) for n, body in enumerate(bodies(6)[:3])
    ]
    archive(tmp_path / "web" / "0.warc.gz", every)
    given = []

    def slow(html: str, method: str, seconds: float) -> Extracted:
        given.append(seconds)
        late = len(given) == 2
        return Extracted("" if late else f"A text of page {len(given)}.", method, "why" if late else "", late)

    monkeypatch.setattr(guarded, "extract", slow)
    config = {**CONFIG, "operators": [], "min_chars": 1, "heldout": 0, "page_seconds": 7.5}
    config["how"] = {"workers": 1}
    out, metrics = work(curate.JOB, config)
    assert given == [7.5] * 3
    assert metrics["documents"] == 2
    (told,) = lines(out / "dropped.jsonl")
    assert (told["id"], told["operator"], told["reason"]) == ("web:1", "extract", "took too long")
    assert (told["value"], told["limit"], told["error"]) == (7.5, 7.5, "why")
    monkeypatch.setattr(extract, "MAX_PAGE_BYTES", 300)
    rows = [{"html": "<p>" + "x" * 400}, {"html": "<p>short"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "rows.jsonl", "field": "html", "extract": "fast"}
    out, _ = work(curate.JOB, {**config, "sources": [source]}, name="rows")
    assert [(r["id"], r["reason"], r["value"]) for r in lines(out / "dropped.jsonl")] == [
        ("rows:0", "too much markup", 403)
    ]


def test_pages_in_an_archive_are_pages(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTML, packed HTML and a web archive in a zip file, as beside it; damage costs the member."""
    every = bodies(6)[:4]
    archive(tmp_path / "c.warc.gz", [record("https://a.example/", page(every[2], tables=False))])
    crawl = (tmp_path / "c.warc.gz").read_bytes()
    members = {
        "0.html": page(every[0], tables=False),
        "1.html.gz": gzip.compress(page(every[1], tables=False)),
        "2.warc.gz": crawl,
        "3.html.gz": gzip.compress(page(every[3]))[:-40],
        "4.txt": b"A text file beside them, of more than fifty characters in all.",
    }
    (tmp_path / "beside").mkdir()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
            (tmp_path / "beside" / name).write_bytes(content)
    found = []
    for path in ("in.zip", "beside"):
        config = {**CONFIG, "sources": [{"name": "web", "path": path}], "heldout": 0, "operators": []}
        out, metrics = work(curate.JOB, config, name=path.partition(".")[0])
        table = pq.read_table(out / "train").to_pylist()
        found.append([(row["id"], row["url"], row["text"]) for row in table])
        assert metrics["problems"] == 1
    assert found[0] == found[1]
    assert [row[1] for row in found[0]] == ["", "", "https://a.example/", ""]
    assert found[0][2][2] == "\n".join(every[2])
    with monkeypatch.context() as patch:
        patch.setattr(sources, "find_spec", lambda name: None if name == "fastwarc" else 1)
        with pytest.raises(MissingExtra, match=r"shunter\[web\]"):
            work(curate.JOB, {**CONFIG, "sources": [{"name": "web", "path": "in.zip"}]})


def test_a_hostile_page_holds_no_worker(tmp_path: Path, work: Work) -> None:
    """A tag with very many attributes takes the parser, in C, the square of their number: here minutes."""
    attributes = " ".join(f'a{number}="b"' for number in range(400_000))
    pages = [page(body, tables=False) for body in bodies(6)[:2]]
    every = [pages[0], f"<html><body><p {attributes}>Text.</p>".encode(), pages[1]]
    archive(tmp_path / "web" / "0.warc.gz", [record(f"https://a/{n}", p) for n, p in enumerate(every)])
    config = {**CONFIG, "operators": [], "heldout": 0, "page_seconds": 0.8, "how": {"workers": 1}}
    out, metrics = work(curate.JOB, config)
    (told,) = lines(out / "dropped.jsonl")
    assert (told["id"], told["reason"], told["error"]) == ("web:1", "took too long", "took more than 0.8 s")
    assert metrics["documents"] == 2
