"""curate with operators: the same corpus for any files and chunks, and a reason for all that left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shunter.cli.corpus import sentence
from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation.why import why
from shunter.jobs import curate
from shunter.recipe.job import Stopped
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.conftest import Still, Work

FILES = ["train/00000.parquet", "heldout/00000.parquet", "dropped.jsonl", "samples.jsonl", "summary.json"]
CONFIG: dict[str, Any] = {
    "sources": [{"name": "web", "path": "web/*.jsonl", "licence": "mine"}],
    "preset": "fineweb2",
    "operators": [{"kind": "repeated-paragraphs"}],
    "heldout": 0.2,
}


def write(folder: Path, texts: list[str], files: int) -> None:
    """The texts in order, over so many files."""
    folder.mkdir(parents=True)
    size = -(-len(texts) // files)
    for number in range(files):
        rows = texts[number * size : (number + 1) * size]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{number}.jsonl").write_text(lines, encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_and_chunks_change_nothing(tmp_path: Path, work: Work) -> None:
    texts = texts_of(5, 90)
    made = []
    for files, chunk in ((1, 10**9), (4, 700)):
        write(tmp_path / str(files) / "web", texts, files)
        how = {"workers": 1, "chunk_chars": chunk}
        out, metrics = work(curate.JOB, {**CONFIG, "how": how}, base=tmp_path / str(files), name=f"n{files}")
        made.append({name: (out / name).read_bytes() for name in FILES})
        assert metrics["documents"] > 5
    assert made[0] == made[1]
    out = tmp_path / "made" / "n1" / "out"
    dropped = lines(out / "dropped.jsonl")
    kept = [d.id for split in ("train", "heldout") for d in corpus.texts(out / split)]
    assert sorted(kept + [d["id"] for d in dropped]) == sorted(f"web:{n}" for n in range(90))
    assert [int(d["id"][4:]) for d in dropped] == sorted(int(d["id"][4:]) for d in dropped)
    near = [d for d in dropped if d["reason"] == "near duplicate"]
    assert near
    assert all(int(d["of"][4:]) < int(d["id"][4:]) for d in near)
    table = pq.read_table(out / "train" / "00000.parquet")
    assert table.column_names == ["id", "source", "row", "text", "cluster_size"]
    assert max(table.column("cluster_size").to_pylist()) > 1
    summary = json.loads((out / "summary.json").read_text())
    names = [row["operator"] for row in summary["operators"]]
    assert names[0] == "near-duplicates"
    assert summary["operators"][-1]["kept"] == len(kept)


def test_why_tells_what_became_of_each_document(tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", texts_of(5, 60), 1)
    out, _ = work(curate.JOB, {**CONFIG, "how": {"workers": 1}})
    dropped = {record["id"]: record for record in lines(out / "dropped.jsonl")}
    for number in range(60):
        told = why(out, f"web:{number}")
        assert told["id"] == f"web:{number}"
        if told["id"] in dropped:
            assert told == {"state": "dropped", **dropped[told["id"]]}
            assert told["operator"] in sentence(told)
        else:
            rows = list(corpus.texts(out / told["split"]))
            assert rows[told["place"]].id == told["id"]
            assert f"{told['place']} of {told['split']}" in sentence(told)
    with pytest.raises(ShunterError, match="no document 'web:60'"):
        why(out, "web:60")


def test_parts_of_a_document_are_told_together(tmp_path: Path, work: Work) -> None:
    text = (
        "\n\n".join(f"Paragraph {n} of one long text that is cut." for n in range(8)) + "\n\n" + "short " * 9
    )
    (tmp_path / "book.txt").write_text(text)
    config = {"sources": [{"path": "book.txt"}], "section_chars": 90, "heldout": 0.0}
    operators = [{"kind": "gopher-quality", "min_words": 12, "min_stopwords": 0}]
    out, _ = work(curate.JOB, {**config, "operators": operators, "how": {"workers": 1}})
    parts = why(out, "book:0")["parts"]
    assert [part["id"] for part in parts] == [f"book:0.{n}" for n in range(len(parts))]
    assert {part["state"] for part in parts} == {"kept", "dropped"}


def test_a_stopped_job_goes_on(tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", texts_of(5, 90), 2)
    config = {**CONFIG, "how": {"workers": 1, "chunk_chars": 500}}
    expected, _ = work(curate.JOB, config, name="whole")
    stops = 0
    for allowed in range(1, 60, 7):
        try:
            out, _ = work(curate.JOB, config, name="stopped", control=Still(stop_after=allowed))
        except Stopped:
            stops += 1
        else:
            break
    else:
        out, _ = work(curate.JOB, config, name="stopped")
    assert stops > 2
    assert [(out / name).read_bytes() for name in FILES] == [(expected / name).read_bytes() for name in FILES]


def test_what_leaves_nothing_is_refused(tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", ["short.", "", "also short."], 1)
    with pytest.raises(ShunterError, match="none of 3 documents is left"):
        work(curate.JOB, {**CONFIG, "preset": "gopher", "operators": []})


def test_damaged_sources_are_told_and_passed(tmp_path: Path, work: Work) -> None:
    """Broken lines, garbage and a gzip file that is cut: counted, and the rest goes on."""
    import gzip

    folder = tmp_path / "web"
    write(folder, texts_of(5, 60), 1)
    with (folder / "0.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\x00garbage\n{"text": 3}\n{"text": "torn')
    whole = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts_of(6, 60)).encode())
    (folder / "1.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "2.jsonl").write_bytes(b"")
    config = {**CONFIG, "sources": [{"name": "web", "path": "web/*"}], "how": {"workers": 1}}
    out, metrics = work(curate.JOB, config)
    problems = lines(out / "problems.jsonl")
    assert metrics["problems"] == len(problems) >= 4
    assert any("breaks off" in problem["problem"] for problem in problems)
    dropped = lines(out / "dropped.jsonl")
    kept = [d.id for split in ("train", "heldout") for d in corpus.texts(out / split)]
    assert len(set(kept + [d["id"] for d in dropped])) == len(kept) + len(dropped) > 70
