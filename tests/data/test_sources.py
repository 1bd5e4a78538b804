"""Sources: every document has a place, and nothing unreadable disappears without a line that says so."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shunter.config.errors import ShunterError
from shunter.data.sources import Document, Problem, SourceConfig, documents


def read(base: Path, **source: str) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []
    found = list(documents(SourceConfig(**source), base, problems.append))
    return found, problems


def texts(base: Path, **source: str) -> list[str]:
    return [document.text for document in read(base, **source)[0]]


RECORDS = [{"text": "one", "n": 1}, {"text": "zwei ü", "n": 2}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def test_formats(tmp_path: Path) -> None:
    import zstandard

    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet")
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("x/2.txt", "zwei ü")
        archive.writestr("x/1.txt", "one")
        archive.writestr("y/3.txt", "other")
        archive.writestr("../../escape.txt", "escape")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert texts(tmp_path, path=name) == ["one", "zwei ü"], name
    assert texts(tmp_path, path="e.zip", members="x/*.txt") == ["one", "zwei ü"]
    assert not (tmp_path.parent.parent / "escape.txt").exists()


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.txt", "ignored.bin"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    assert texts(tmp_path, path="in") == ["a.md", "b.txt", "sub/c.txt"]
    assert texts(tmp_path, path="in/**/*.txt") == ["b.txt", "sub/c.txt"]
    found, _ = read(tmp_path, path="in", name="mine")
    assert [document.id for document in found] == ["mine:0", "mine:1", "mine:2"]


def test_labels() -> None:
    for path, label in {"a/b.jsonl.gz": "b", "texts": "texts", "in/**/*.txt": "in", "*.txt": "text"}.items():
        assert SourceConfig(path=path).label == label


def test_malformed_lines_are_reported_by_file_and_line(tmp_path: Path) -> None:
    lines = [
        b'{"text": "ok"}',
        b"{broken",
        b'["list"]',
        b'{"other": 1}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b"",
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "last"}']))
    found, problems = read(tmp_path, path="x.jsonl")
    assert [document.text for document in found] == ["ok", "last"]
    assert [(p.file, p.line, p.action) for p in problems] == [("x.jsonl", n, "skipped") for n in range(2, 7)]
    assert len(found) + len(problems) == 7


def test_foreign_bytes_are_replaced_and_reported(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("gut\nstra\xdfe\nok".encode("latin-1"))
    found, problems = read(tmp_path, path="x.txt")
    assert found[0].text == "gut\nstra\ufffde\nok"
    assert problems == [Problem("x.txt", 2, "byte 0xdf is not utf-8", "replaced")]
    assert texts(tmp_path, path="x.txt", encoding="latin-1") == ["gut\nstra\xdfe\nok"]
    with pytest.raises(ShunterError, match="no encoding is called 'utf-9'"):
        read(tmp_path, path="x.txt", encoding="utf-9")


def test_a_cut_stream_is_reported(tmp_path: Path) -> None:
    many = b"".join(json.dumps({"text": f"document {n} {n * 7919}"}).encode() + b"\n" for n in range(2000))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(many)[:-200])
    found, problems = read(tmp_path, path="x.jsonl.gz")
    assert 0 < len(found) < 2000
    assert "breaks off" in problems[-1].problem
    assert problems[-1].line is not None


def test_templates(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "2+2", "a": "<<2+2=4>>4"}\n{"q": "only"}\n')
    found, problems = read(tmp_path, path="x.jsonl", template="{{ q }}: {{ a | without('<<.*?>>') }}")
    assert [document.text for document in found] == ["2+2: 4"]
    assert [(p.line, p.action) for p in problems] == [(2, "skipped")]
    found, problems = read(tmp_path, path="x.jsonl", template="{{ q.__class__.__mro__ }}")
    assert not found
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("missing", "has no files"),
        ("*.none", "has no files"),
        ("x.bin", "unknown kind"),
        ("bad.zip", "not a zip archive"),
        ("bad.parquet", "not a Parquet file"),
    ],
)
def test_what_cannot_be_a_source_is_refused(tmp_path: Path, path: str, complaint: str) -> None:
    for name in ("x.bin", "bad.zip", "bad.parquet"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ShunterError, match=complaint):
        read(tmp_path, path=path)


def test_a_missing_column_names_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet")
    with pytest.raises(ShunterError, match="no column 'body'; there are text, n"):
        read(tmp_path, path="d.parquet", field="body")
