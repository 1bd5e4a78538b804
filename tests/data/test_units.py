"""Units of a corpus: every document in one, cut by the files alone; work on each is done once and whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data import corpus, units


def made(folder: Path, files: list[list[int]]) -> None:
    """A file for each list of lengths; a row group for each two documents or so."""
    number = 0
    for place, sizes in enumerate(files):
        writer = corpus.Writer(folder / "aside")
        for size in sizes:
            writer.write(f"s:{number}", "s", number, "x" * size)
            number += 1
        writer.close()
        (folder / "aside" / "00000.parquet").rename(folder / f"{place:05}.parquet")


@given(st.lists(st.lists(st.integers(0, 300), max_size=9), max_size=4), st.integers(1, 3000))
@settings(max_examples=30, deadline=None)
def test_every_document_is_in_one_unit(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BATCH_BYTES", 500)
        made(folder, files)
    found = units.units(folder, most)
    rows = [
        row for unit in found for batch in unit.batches(["row"], 3) for row in batch.column(0).to_pylist()
    ]
    assert rows == list(range(sum(map(len, files))))
    assert [unit.number for unit in found] == list(range(len(found)))
    begin = 0
    for unit in found:
        assert unit.begin == begin
        assert unit.rows > 0
        begin += unit.rows
    if most == 1:
        assert all(unit.last == unit.first + 1 for unit in found)


def test_work_is_done_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def make(folder: Path) -> dict[str, Any]:
        calls.append(folder.name)
        (folder / "rows.txt").write_text("some")
        return {"rows": len(calls)}

    def broken(folder: Path) -> dict[str, Any]:
        make(folder)
        raise OSError(28, "No space left on device")

    once = units.Once(tmp_path / "work")
    with pytest.raises(OSError, match="No space left"):
        once("a", broken)
    assert not list(once.folder.iterdir()), "others need the room"
    monkeypatch.setattr(units.disk, "remove", lambda path: None)  # a kill gives no time for it
    with pytest.raises(OSError, match="No space left"):
        once("a", broken)
    assert [path.name for path in once.folder.iterdir()] == ["a.part"]
    monkeypatch.undo()
    once = units.Once(tmp_path / "work")
    place = once("a", make)
    assert once("a", broken) == place
    assert (units.record(place), (place / "rows.txt").read_text()) == ({"rows": 3}, "some")
    assert calls == ["a.part"] * 3
    assert not (units.Once(tmp_path / "work", "another statement").folder / "a").exists()
    assert json.loads((place / "record.json").read_text()) == {"rows": 3}


def test_files_are_linked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        writer = corpus.Writer(tmp_path / name)
        writer.write(f"{name}:0", name, 0, name)
        writer.close()
    files = [tmp_path / name / "00000.parquet" for name in "ba"]
    units.gathered(files, tmp_path / "linked", {})
    assert [text.text for text in corpus.texts(tmp_path / "linked")] == ["b", "a"]
    assert (tmp_path / "linked" / "00001.parquet").stat().st_ino == files[1].stat().st_ino

    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(units.os, "link", refused)
    units.gathered(files, tmp_path / "copied", {})
    assert [text.text for text in corpus.texts(tmp_path / "copied")] == ["b", "a"]
    units.gathered([], tmp_path / "empty", {})
    assert list(corpus.texts(tmp_path / "empty")) == []
