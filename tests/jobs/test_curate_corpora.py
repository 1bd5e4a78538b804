"""Corpora of other jobs as input: ids, addresses, columns and parts stay; what contradicts is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation.why import why
from shunter.data.meter import Meter
from shunter.jobs import curate
from shunter.jobs.curate_corpora import Corpora
from tests.jobs.conftest import Work

PASS = {"kind": "mask-personal"}  # changes nothing of what is written here


def text(number: int) -> str:
    draw = np.random.default_rng(number)
    return " ".join("".join(draw.choice(list("abcdefghij"), 6)) for _ in range(30)) + "."


def made(folder: Path, rows: list[dict[str, Any]], licence: str | None = "mine", held: int = 0) -> Path:
    """A corpus of these documents, the last of them held out."""
    facts = {name: pa.infer_type([value]) for name, value in rows[0].items() if name not in ("id", "text")}
    for split, part in (("train", rows[: len(rows) - held]), ("heldout", rows[len(rows) - held :])):
        writer = corpus.Writer(folder / split, facts)
        for number, row in enumerate(part):
            source = row["id"].partition(":")[0]
            writer.write(row["id"], source, number, row["text"], *(row[name] for name in facts))
        writer.close()
    sources = {row["id"].partition(":")[0]: {"licence": licence} for row in rows}
    (folder / "summary.json").write_text(json.dumps({"sources": sources}))
    return folder


@dataclass
class Made:
    """What `Corpora` asks of an artefact without problems."""

    path: Path
    manifest: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="c"))


def read(work: Work, inputs: list[Path], name: str = "read", **config: Any) -> Path:
    given = {"corpora": ["c"] * len(inputs), "operators": [PASS], "heldout": 0.0, "how": {"workers": 1}}
    return work(curate.JOB, {**given, **config}, inputs={"corpora": inputs}, name=name)[0]


def test_addresses_and_columns_are_carried_over(tmp_path: Path, work: Work) -> None:
    rows = [
        {
            "id": f"web:{n}",
            "text": text(n),
            "url": f"https://www.nasa.gov/{n}",
            "copies": n + 1,
            "score": n / 2,
        }
        for n in range(4)
    ]
    first = made(tmp_path / "first" / "out", rows)
    second = made(tmp_path / "second" / "out", [{"id": "book:0", "text": text(9), "quality": "fine"}])
    (tmp_path / "own.txt").write_text(text(10))
    out = read(work, [first, second], sources=[{"path": "own.txt"}])
    table = {row["id"]: row for row in pq.read_table(out / "train").to_pylist()}
    assert len(table) == 6
    for row in rows:
        assert {name: table[row["id"]][name] for name in row} == row
        assert table[row["id"]]["quality"] is None
    assert table["book:0"]["quality"] == "fine"
    assert (table["own:0"]["url"], table["own:0"]["copies"], table["own:0"]["score"]) == ("", 1, None)
    assert [each.copies for each in corpus.texts(out / "train")] == [1, 1, 2, 3, 4, 1]
    gate = {"kind": "licence-tiers", "sources": {"book": "2a"}}
    tiers = pq.read_table(read(work, [first, second], "gate", operators=[gate]) / "train").to_pylist()
    assert [row["tier"] for row in tiers] == ["3"] * 4 + ["2a"]


def test_a_column_that_the_chain_makes_is_its_own(tmp_path: Path, work: Work) -> None:
    rows = [{"id": f"web:{n}", "text": text(n // 2), "cluster_size": 70 + n, "n": n} for n in range(4)]
    out = read(work, [made(tmp_path / "c", rows)], operators=[{"kind": "near-duplicates"}], deduplicate=False)
    table = pq.read_table(out / "train").to_pylist()
    assert [(row["id"], row["cluster_size"], row["n"]) for row in table] == [("web:0", 2, 0), ("web:2", 2, 2)]


def test_what_cannot_be_carried_is_told(tmp_path: Path, work: Work) -> None:
    rows = [{"id": "web:0", "text": text(0), "tags": ["a"], "n": 1}]
    out = read(work, [made(tmp_path / "c", rows)])
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert len(problems) == 1
    assert "column 'tags' is not carried over" in problems[0]["problem"]
    assert "n" in pq.read_schema(out / "train" / "00000.parquet").names
    other = made(tmp_path / "d", [{"id": "book:0", "text": text(1), "n": "one"}])
    with pytest.raises(ShunterError, match=r"column 'n' is string in .* and int64"):
        read(work, [tmp_path / "c", other], "mixed")


def test_what_is_held_out_stays_so(tmp_path: Path, work: Work) -> None:
    """Also when a chain edits it, which gives its text another digest."""
    rows = [{"id": f"web:{n}", "text": f"{text(n)} write to a{n}@b.de"} for n in range(60)]
    first = made(tmp_path / "first", rows, held=12)
    out = read(work, [first], operators=[{"kind": "mask-personal"}], heldout=0.5)
    held = [each.id for each in corpus.texts(out / "heldout")]
    assert held == [f"web:{n}" for n in range(48, 60)]
    assert all("email@example.com" in each.text for each in corpus.texts(out / "heldout"))
    parted = read(work, [made(tmp_path / "whole", rows)], "anew", heldout=0.5)
    assert 15 < len(list(corpus.texts(parted / "heldout"))) < 45, "one that holds nothing out is parted"


def test_how_far_reading_is_grows_to_all_there_is(tmp_path: Path) -> None:
    """Within a file too: a job writes one."""
    rows = [{"id": f"web:{n}", "text": f"{n} some words"} for n in range(5000)]
    corpora, meter = Corpora([Made(made(tmp_path / "c", rows, held=1000))]), Meter()  # type: ignore[list-item]
    told = [meter.read for _ in corpora.documents(set(), meter)]
    assert told == sorted(told)
    assert meter.read == corpora.bytes() > told[-1] > 0
    assert abs(told[2500] / corpora.bytes() - 0.5) < 0.2


def test_parts_of_documents_keep_their_names(tmp_path: Path, work: Work) -> None:
    rows = [{"id": f"web:{n // 2}.{n % 2}", "text": text(n)} for n in range(4)]
    out = read(work, [made(tmp_path / "c", rows)])
    assert [each.id for each in corpus.texts(out / "train")] == [row["id"] for row in rows]
    assert len(why(out, "web:1")["parts"]) == 2


def test_one_id_of_two_documents_is_refused(tmp_path: Path, work: Work) -> None:
    inputs = [
        made(tmp_path / name / "out", [{"id": "web:0", "text": text(n)}]) for n, name in enumerate("ab")
    ]
    with pytest.raises(ShunterError, match="two documents have the id web:0: in a and in b"):
        read(work, inputs)
    (tmp_path / "web.txt").write_text(text(3))
    with pytest.raises(ShunterError, match="two documents have the id web:0: in the sources and in a"):
        read(work, inputs[:1], "own", sources=[{"path": "web.txt", "licence": "mine"}])
    apart = made(tmp_path / "c" / "out", [{"id": "web:7", "text": text(4)}])
    assert len(list(corpus.texts(read(work, [inputs[0], apart], "apart") / "train"))) == 2


def test_a_source_has_one_licence(tmp_path: Path, work: Work) -> None:
    first = made(tmp_path / "a" / "out", [{"id": "web:0", "text": text(0)}], "AAA")
    second = made(tmp_path / "b" / "out", [{"id": "web:1", "text": text(1)}], "BBB")
    with pytest.raises(ShunterError, match="'web' has the licence BBB in b and AAA in a"):
        read(work, [first, second])
    (tmp_path / "web.txt").write_text(text(3))
    with pytest.raises(ShunterError, match="'web' has the licence AAA in a and CCC here"):
        read(work, [first], "own", sources=[{"path": "web.txt", "licence": "CCC"}])


def test_a_corpus_of_other_ids_is_refused(tmp_path: Path, work: Work) -> None:
    folder = made(tmp_path / "c", [{"id": "some-page", "text": text(0)}])
    with pytest.raises(ShunterError, match="the id 'some-page' is not SOURCE:ROW"):
        read(work, [folder])


def test_one_long_address_does_not_make_all_long(tmp_path: Path, work: Work) -> None:
    """As an array of equal widths, two thousand addresses would take 3 GB."""
    import tracemalloc

    rows = [{"id": f"web:{n}", "text": f"{n} a short text", "url": "x"} for n in range(2000)]
    rows[7]["url"] = "data:" + "y" * 400_000
    folder = made(tmp_path / "c", rows)
    tracemalloc.start()
    try:
        out = read(work, [folder], operators=[PASS, {"kind": "near-duplicates"}])
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert len(pq.read_table(out / "train").column("url")[7].as_py()) == 400_005


def test_short_documents_are_cut_into_chunks_too(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.jobs import curate_chain

    rows = [{"id": f"web:{n}", "text": f"{n} short"} for n in range(25)]
    folder = made(tmp_path / "c", rows)
    whole = read(work, [folder], "whole")
    monkeypatch.setattr(curate_chain, "CHUNK_DOCUMENTS", 10)
    parted = read(work, [folder], "parted")
    private = tmp_path / "made" / "parted" / "private"
    assert len(list(private.glob("chain-*/0/*.json"))) == 3
    assert [p.read_bytes() for p in sorted(parted.rglob("*.parquet"))] == [
        p.read_bytes() for p in sorted(whole.rglob("*.parquet"))
    ]


def test_an_artefact_without_a_summary_is_read(tmp_path: Path, work: Work) -> None:
    folder = made(tmp_path / "c", [{"id": "web:0", "text": text(0)}])
    (folder / "summary.json").unlink()
    out = read(work, [folder])
    assert json.loads((out / "summary.json").read_text())["sources"]["web"]["licence"] is None
