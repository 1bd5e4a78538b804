"""Text files beyond a bound are read as several texts, which are the file again, in bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data import pieces
from shunter.data.pieces import texts
from shunter.data.sources import Problem, SourceConfig, documents

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small() -> object:
    """Bounds of 200 and 60 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LONG", 200)
        patch.setattr(pieces, "PIECE", 60)
        yield


@given(
    st.lists(
        st.sampled_from(["word", "zwölf", "日本語", "é" * 70, "\n", "\n\n", "\r\n", " ", "."]), max_size=90
    ),
    st.sampled_from(["utf-8", "utf-16", "utf-16-be", "utf-32", "auto"]),
)
@settings(max_examples=150, deadline=None)
def test_the_texts_are_the_file_again(small: object, parts: list[str], encoding: str) -> None:
    text = "".join(parts)
    raw = text.encode("utf-8" if encoding == "auto" else encoding)
    problems: list[Problem] = []
    found = list(texts(io.BytesIO(raw), "a.txt", encoding, problems.append))
    assert "".join(found) == text
    assert (len(found) > 1) == (len(raw) > 200)
    assert [p.problem for p in problems] == (
        [f"more than 0 MiB, read as {len(found)} documents"] if len(raw) > 200 else []
    )
    size = len if encoding.startswith(("utf-16", "utf-32")) else lambda each: len(each.encode())
    assert all(size(each) <= 60 for each in found) or len(raw) <= 200


def test_cuts_fall_between_paragraphs_then_lines_then_words(small: object) -> None:
    for mark in ("\n\n", "\n", " "):
        text = mark.join(["abcdefghij"] * 40)
        found = list(texts(io.BytesIO(text.encode()), "a.txt", "utf-8", lambda problem: None))
        assert all(each.endswith(f"abcdefghij{mark}") for each in found[:-1]), mark


def test_foreign_bytes_are_told_by_line(small: object) -> None:
    lines = [b"a line of text"] * 40
    lines[3], lines[33] = b"b\xffd", b"\xfe"
    problems: list[Problem] = []
    found = list(texts(io.BytesIO(b"\n".join(lines)), "a.txt", "utf-8", problems.append))
    assert "".join(found).count("\ufffd") == 2
    assert [p.line for p in problems[:-1]] == [4, 34]
    problems.clear()
    broken = ("text\n" * 60).encode("utf-16-le")[:-1]
    assert "".join(texts(io.BytesIO(broken), "a.txt", "utf-16-le", problems.append)).endswith("text\ufffd")
    assert problems[0].problem == "1 places are not utf-16-le"


def test_each_text_is_a_document_with_an_id(tmp_path: Path, small: object) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Some words in a line.\n\n" * 30)
    (tmp_path / "in" / "b.txt").write_text("short")
    with zipfile.ZipFile(tmp_path / "in" / "c.zip", "w") as archive:
        archive.writestr("d.txt", "Other words in a line.\n\n" * 30)
    problems: list[Problem] = []
    found = list(documents(SourceConfig(name="s", path="in"), tmp_path, problems.append))
    assert [each.id for each in found] == [f"s:{n}" for n in range(len(found))]
    assert "".join(each.text for each in found if "Other" in each.text) == "Other words in a line.\n\n" * 30
    assert [(p.file, p.action) for p in problems] == [("in/a.txt", "parted"), ("in/c.zip!d.txt", "parted")]


@pytest.mark.long
@pytest.mark.parametrize("feed", [b"x" * (1 << 20), b"some words\n\n" * 90_000])
def test_a_text_of_a_gigabyte_takes_bounded_memory(tmp_path: Path, feed: bytes) -> None:
    """One line without a space, and paragraphs."""
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range((1 << 30) // len(feed)):
            file.write(feed)
    code = (
        "import resource, sys; from pathlib import Path; from shunter.data.sources import *; told = [];"
        "found = documents(SourceConfig(path='a.txt'), Path(sys.argv[1]), told.append);"
        "print(sum(len(d.text) for d in found), len(told),"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    size, told, peak = map(int, ran.stdout.split())
    assert (size, told) == ((1 << 30) // len(feed) * len(feed), 1)
    assert peak < 450_000, "kB"
