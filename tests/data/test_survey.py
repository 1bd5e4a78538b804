"""Looking at a person's files."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shunter.config.errors import ShunterError
from shunter.data.survey import Found, is_chat, pick_field, survey

TEXT = "A sentence that somebody wrote, for reading. " * 20


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def only(path: Path) -> Found:
    (found,) = survey([path])
    return found


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt", "c.TXT"):
        (tmp_path / name).write_text(TEXT)
    for name in (".hidden.txt", "image.png"):
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "shunter-store").mkdir()
    (tmp_path / "shunter-store" / "made.txt").write_text(TEXT)
    assert only(tmp_path) == Found(f"{tmp_path}/**/*.txt", "text", ".txt", 3, 3 * len(TEXT))
    assert only(tmp_path / "a.txt").path == str(tmp_path / "a.txt")


def test_the_most_text_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT * 3)
    assert [found.suffix for found in survey([tmp_path])] == [".txt", ".md"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_records(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"id": str(n), "url": "x" * 400, "content": f"{n} {TEXT}"} for n in range(500)
    ]
    raw = jsonl(rows)
    file = tmp_path / f"a.jsonl{suffix}"
    packed = {"": raw, ".gz": gzip.compress(raw), ".zst": zstandard.compress(raw)}
    file.write_bytes(packed[suffix])
    found = only(tmp_path)
    assert (found.format, found.field, found.chat) == ("jsonl", "content", False)
    true = sum(len(str(row["content"])) for row in rows)
    assert abs(found.bytes / true - 1) < 0.1


def test_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"messages": messages}] * 5))
    found = only(tmp_path)
    assert found.chat
    assert found.field is None
    assert abs(found.bytes / (10 * len(TEXT)) - 1) < 0.1
    assert is_chat([{"prompt": "a", "completion": "b"}])
    assert not is_chat([{"prompt": "a", "completion": "b"}, {"text": "c"}])
    assert not is_chat([])


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(1000)), "body": [f"{n} {TEXT}" for n in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = only(tmp_path)
    assert (found.format, found.field) == ("parquet", "body")
    assert abs(found.bytes / (1000 * len(TEXT)) - 1) < 0.1
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ShunterError, match="not a readable Parquet file"):
        survey([tmp_path])


def test_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.txt", TEXT * 9)
        archive.writestr("in/b.jsonl", jsonl([{"text": TEXT}] * 3))
        archive.writestr("in/c.png", "x")
    first, second = survey([tmp_path])
    assert first == Found(str(tmp_path / "a.zip"), "zip", ".txt", 1, 9 * len(TEXT))
    assert (second.suffix, second.field) == (".jsonl", "text")
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ShunterError, match="not a readable zip archive"):
        survey([tmp_path])


def test_fields() -> None:
    assert pick_field([{"title": "x" * 50, "text": "y" * 40}]) == "text"
    assert pick_field([{"story": "x" * 500, "text": "y"}]) == "story"
    assert pick_field([{"n": 3}]) is None
    assert pick_field([]) is None


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="no such file or folder"):
        survey([tmp_path / "none"])
    (tmp_path / "a.png").write_text("x")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ShunterError, match=r"no text was found\. Give files of these kinds: \.txt, \.md"):
        survey([tmp_path])
