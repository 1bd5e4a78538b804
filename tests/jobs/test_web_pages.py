"""curate reads web archives and HTML: the same rows for any cut, and a record for each page that left."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data import sources
from shunter.data.curation.why import why
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
