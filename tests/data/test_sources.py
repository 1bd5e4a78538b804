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
from shunter.data import checks
from shunter.data.sources import Document, Problem, SourceConfig, documents, left_out


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


def test_a_damaged_stream_is_reported_not_raised(tmp_path: Path) -> None:
    """One flipped byte in the middle: what came before stays, the rest is named."""
    many = "".join(json.dumps({"text": f"line {n} {n * 7919 % 1000}"}) + "\n" for n in range(3000)).encode()
    packed = bytearray(gzip.compress(many))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    found, problems = read(tmp_path, path="a.jsonl.gz")
    assert 0 < len(found) < 3000
    assert all(problem.action == "skipped" for problem in problems)
    assert any("breaks off" in p.problem or "not JSON" in p.problem for p in problems)


def test_members_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.txt", "good")
        archive.writestr("2.txt", "x" * 5000)
        archive.writestr("3.txt", "secret")
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        damaged, locked = archive.getinfo("2.txt"), archive.getinfo("3.txt")
    body = damaged.header_offset + 30 + len("2.txt")
    raw[body : body + 4] = b"\xff\xff\xff\xff"
    raw[locked.header_offset + 6] |= 1  # says that it is encrypted, here and in the directory
    place = raw.rfind(b"PK\x01\x02")
    raw[place + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    found, problems = read(tmp_path, path="a.zip")
    assert [document.text for document in found] == ["good"]
    assert [problem.file for problem in problems] == ["a.zip!2.txt", "a.zip!3.txt"]
    assert "cannot be read" in problems[0].problem
    assert "password" in problems[1].problem


def test_parquet_inside_an_archive(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet")
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.write(tmp_path / "d.parquet", "part-0.parquet")
    assert texts(tmp_path, path="e.zip") == ["one", "zwei ü"]
    assert texts(tmp_path, path="e.zip", members="*.parquet") == ["one", "zwei ü"]


def test_a_damaged_parquet_page_is_reported(tmp_path: Path) -> None:
    rows = [{"text": f"row {n} " + "y" * (n % 50)} for n in range(6000)]
    table = pa.Table.from_pylist(rows)
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=1000, **plain)
    raw = bytearray((tmp_path / "d.parquet").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4000] = b"\xff" * 4000
    (tmp_path / "d.parquet").write_bytes(raw)
    found, problems = read(tmp_path, path="d.parquet")
    assert 0 < len(found) < 6000
    assert problems[-1].line == len(found) + 1


def test_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES)
    assert texts(tmp_path, path="a.jsonl") == ["one", "zwei ü"]
    (tmp_path / "b.txt").write_text("ein Text", encoding="utf-16")
    with pytest.raises(ShunterError, match="the text is UTF-16"):
        texts(tmp_path, path="b.txt")
    assert texts(tmp_path, path="b.txt", encoding="utf-16") == ["ein Text"]


def test_files_that_a_folder_leaves_out_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv", "c.txt.gz", "d.csv"):
        (tmp_path / name).write_text("x")
    source = SourceConfig(path=".")
    assert left_out(source, tmp_path) == {".csv": 2, ".gz": 1}
    assert left_out(SourceConfig(path="a.txt"), tmp_path) == {}


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


def test_members_that_are_not_read_are_counted_and_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    zipped(tmp_path / "in" / "a.zip", one__txt=b"one", page__pdf=b"<p>", t__csv=b"1,2", u__csv=b"3")
    zipped(tmp_path / "b.zip", inner__zip=b"PK", one__txt=b"one")
    _, problems = read(tmp_path, path="in/a.zip")
    assert [(p.file, p.action) for p in problems] == [
        (f"in/a.zip!{name}", "skipped") for name in ("page.pdf", "t.csv", "u.csv")
    ]
    for path in ("in", "in/a.zip", "in/*.zip"):
        assert left_out(SourceConfig(path=path), tmp_path) == {".pdf": 1, ".csv": 2}, path
    for members in ({}, {"members": "*"}):
        _, problems = read(tmp_path, path="b.zip", **members)
        assert [p.problem for p in problems] == ["the member is an archive inside an archive"]
        assert left_out(SourceConfig(path="b.zip", **members), tmp_path) == {".zip": 1}
    # What a person's glob leaves out was chosen, and what it names is read as text.
    assert texts(tmp_path, path="in/a.zip", members="*.pdf") == ["<p>"]
    assert left_out(SourceConfig(path="in/a.zip", members="*.pdf"), tmp_path) == {}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"path": "a.jsonl", "template": "{{ text"}, "the template of source 'a' is not valid"),
        ({"path": "a.jsonl", "template": "{{ text | shout }}"}, "No filter named 'shout'"),
        ({"path": "a.txt", "encoding": "klingon"}, "no text encoding is called 'klingon'"),
        ({"path": "a.txt", "encoding": "rot13"}, "no text encoding is called 'rot13'"),
        ({"path": "d.parquet", "field": "body"}, "no column 'body'; there are text, n"),
        (
            {"path": "a.jsonl", "field": "txt"},
            r"no field 'txt' in .* are text, n\. Did you mean 'text'",
        ),
        (
            {"path": "a.jsonl", "template": "{{ txt }}"},
            "the template fails: .* undefined, as for all of",
        ),
        ({"path": "a.parquet"}, "not a Parquet file"),
        ({"path": "e.zip", "members": "*.none"}, "no member of the archive matches '\\*.none'"),
        ({"path": "f.zip"}, "matches 'a known ending'; 1 of other kinds are there"),
        ({"path": "a.zip"}, "not a zip archive"),
        ({"path": "missing"}, "has no files"),
    ],
)
def test_what_a_run_would_stumble_on_is_known_before(
    tmp_path: Path, source: dict[str, str], complaint: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for name in ("a.txt", "a.parquet", "a.zip"):
        (tmp_path / name).write_bytes(b"plain")
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet")
    zipped(tmp_path / "e.zip", one__txt=b"one")
    zipped(tmp_path / "f.zip", one__csv=b"one")
    with pytest.raises(ShunterError, match=complaint):
        checks.check(SourceConfig(**source), tmp_path)
    (tmp_path / "late.jsonl").write_text('{"id": 1}\n' * 9 + '{"body": "some"}\n')
    for sound in (
        {"path": "a.jsonl", "template": "{{ text | without('x') }}"},
        {"path": "d.parquet"},
        {"path": "*.jsonl", "field": "body"},  # one of the first records has it
        {"path": "a.txt", "field": "body"},
    ):
        checks.check(SourceConfig(**sound), tmp_path)


def test_what_a_run_can_read_in_part_is_told_and_not_refused(tmp_path: Path) -> None:
    """A first file of other records, a field that comes late, and one of addresses that is not there."""
    (tmp_path / "a.jsonl").write_text('{"meta": 1}\n' * 150)
    (tmp_path / "b.jsonl").write_text('{"text": "some"}\n')
    (tmp_path / "c.jsonl").write_text('{"meta": 1}\n' * 150 + '{"text": "some"}\n')
    assert checks.check(SourceConfig(path="c.jsonl"), tmp_path) != []
    (warning,) = checks.check(SourceConfig(path="*.jsonl"), tmp_path)
    assert "a.jsonl and 1 other files: none of the first records has the field 'text'" in warning
    (tmp_path / "c.jsonl").unlink()
    (warning,) = checks.check(SourceConfig(path="b.jsonl", url="link"), tmp_path)
    assert "no field 'link' in the first 1 records; there are text. Set the source's `url`" in warning
    (tmp_path / "e.jsonl").write_text('{"text": "some"}\n' * 9 + '{"text": "some", "link": ""}\n')
    assert checks.check(SourceConfig(path="e.jsonl", url="link"), tmp_path) == []
    (tmp_path / "e.jsonl").unlink()
    (tmp_path / "d.txt").write_text("plain")
    (warning,) = checks.check(SourceConfig(path="[ad].*"), tmp_path)
    assert "a.jsonl: none of the first records has the field" in warning
    with pytest.raises(ShunterError, match="no field 'text'"):
        checks.check(SourceConfig(path="a.jsonl"), tmp_path)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    zipped(tmp_path / "e.zip", one__txt=b"one")
    source = SourceConfig(path="e.zip", members="*.md", encoding="klingon", template="{{")
    with pytest.raises(ShunterError) as caught:
        checks.check(source, tmp_path)
    assert [key in str(caught.value) for key in ("klingon", "template", "*.md")] == [True] * 3


def test_an_oversized_member_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shunter.data.archives.MAX_MEMBER_BYTES", 2000)
    zipped(tmp_path / "a.zip", big__txt=b"x" * 5000, one__txt=b"one")
    found, problems = read(tmp_path, path="a.zip")
    assert [document.text for document in found] == ["one"]
    assert [(p.file, p.problem, p.action) for p in problems] == [
        ("a.zip!big.txt", "the member is 0 MiB", "skipped")
    ]
