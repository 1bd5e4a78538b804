"""What the report tells of a curated corpus: the funnel as table and plot, languages, samples, leaks.

The corpus is one that a `curate` job makes here, so that a name that one side changes is missed by the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shunter.jobs import curate
from shunter.report.contents import DataSection, describe_data
from shunter.report.facts import Facts, JobFacts
from tests.data.curation.test_lingua import TEXTS, lingua  # noqa: F401
from tests.jobs.conftest import Work, work  # noqa: F401


def tables_of(section: DataSection) -> dict[str, list[list[str]]]:
    return {table.title: table.rows for table in section.tables}


def test_a_curated_corpus(
    tmp_path: Path,
    work: Work,  # noqa: F811
    lingua: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), 5)) for _ in range(300)]
    item = " ".join(draw.choice(words, 30))
    texts = [" ".join(draw.choice(words, 60)) for _ in range(12)]
    rows = [*texts, *(f"{TEXTS[1]} {n}" for n in range(3)), f"{texts[0]} more.", f"Before. {item} After."]
    rows.append(texts[3])
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": item}) + "\n")
    operators = [
        {"kind": "language", "by": "lingua"},
        {"kind": "near-duplicates"},
        {"kind": "decontaminate", "against": [{"path": "eval.jsonl"}]},
        {"kind": "gopher-quality", "min_words": 20, "min_stopwords": 0},
    ]
    config = {
        "sources": [{"path": "web.jsonl"}],
        "operators": operators,
        "heldout": 0.0,
        "how": {"workers": 1},
    }
    out, metrics = work(curate.JOB, config)
    facts = Facts("title", jobs=[JobFacts("corpus", "curate", "corpus", path=out, metrics=metrics)])
    (section,) = describe_data(facts)
    assert not facts.problems
    records, summary = (out / "dropped.jsonl").read_text(), json.loads((out / "summary.json").read_text())
    (out / "dropped.jsonl").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", None)
        assert describe_data(facts) == [section], "what left and how much text stayed is counted already"
    (out / "dropped.jsonl").write_text(records)
    assert summary.pop("dropped_by_reading") == {"duplicate": 1}
    (out / "summary.json").write_text(json.dumps(summary))
    assert describe_data(facts) == [section], "older corpora have no such count"
    documents = tables_of(section)["Documents"]
    (out / "summary.json").write_text(json.dumps({**summary, "train": {}}))
    assert tables_of(describe_data(facts)[0])["Documents"] == documents
    (out / "summary.json").write_text(json.dumps(summary))
    tables = tables_of(section)
    (source,) = tables["Sources"]
    assert source[:4] == ["web", "not given", "12", "0"]
    assert source[5:] == ["6", "near duplicate"]
    funnel = tables["Funnel"]
    assert [row[:3] for row in funnel] == [
        ["reading", "18", "17"],
        ["language", "17", "17"],
        ["near-duplicates", "17", "14"],
        ["decontaminate", "14", "13"],
        ["gopher-quality", "13", "12"],
    ]
    assert funnel[0][-1] == "duplicate 1"
    assert "near duplicate 3" in funnel[2][-1]
    assert [row[6] for row in funnel[:-1]] == [row[5] for row in funnel[1:]], "what goes in came out before"
    (chart,) = section.charts
    assert [line.name for line in chart.series] == ["documents", "characters"]
    points = json.loads(chart.hover)["series"][0]["points"]
    assert [round(y * 17 / 100) for _, y in points] == [17, 17, 14, 13, 12]
    assert tables["Languages"][0][:2] == ["eng", "12"]
    gone = int(tables["Languages"][0][3])
    assert gone > 0
    assert tables["Languages"][0][4] == f"{12 / (12 + gone):.1%}"
    assert tables["Decontamination: 100% of what left hold half of an evaluation text or more"] == [
        ["eval", "1", "1", "1"]
    ]
    removed = {(row[0], row[1]) for row in tables["Samples of what was removed"]}
    assert ("decontaminate", "in an evaluation set") in removed
    kept = tables["Samples of what stayed"]
    assert len(kept) == 10
    assert all(texts[int(row[0].partition(":")[2])].startswith(row[1]) for row in kept)
