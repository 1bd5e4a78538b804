"""Near-duplicates of corpora that are there already leave, with the id of what they copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.data import corpus, units
from shunter.data.curation.why import why
from shunter.jobs import curate
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import lines, write

BOTH = ("train", "heldout")
CONFIG: dict[str, Any] = {"operators": [{"kind": "near-duplicates"}], "heldout": 0.2, "how": {"workers": 1}}


def test_copies_of_earlier_documents_leave(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus is what is left of the whole when the first part of it is taken away; in any units."""
    texts = [
        f"{text} And the end of number {n}." for n, text in enumerate(texts_of(11, 80)) if len(text) > 200
    ]
    copies = [text.replace("ship", "boat", 1) for text in texts[5:15]]
    first, second = texts[:25], [*copies[:5], *texts[25:], *copies[5:], texts[30]]
    for name, rows in (("old", first), ("new", second), ("both", [*first, *second])):
        write(tmp_path / name / "web", rows, 1)

    def source(name: str) -> dict[str, Any]:
        return {**CONFIG, "sources": [{"name": name, "path": f"{name}/web/*.jsonl"}]}

    whole = {**source("old"), "deduplicate": False, "operators": [{"kind": "mask-personal"}]}
    old, _ = work(curate.JOB, whole, name="old")
    both, _ = work(curate.JOB, {**source("both"), "deduplicate": False}, name="both")
    found = []
    for most in (1 << 30, 1):
        monkeypatch.setattr(units, "UNIT_BYTES", most)
        config = {**source("new"), "deduplicate": False, "earlier": ["old"]}
        out, _ = work(curate.JOB, config, inputs={"earlier": [old]}, name=f"new{most}")
        found.append([(out / name).read_bytes() for name in ("train/00000.parquet", "dropped.jsonl")])
    assert found[0] == found[1]
    ours = {row["text"]: row["cluster_size"] for split in BOTH for row in corpus.rows(out / split)}
    theirs = {
        row["text"]: row["cluster_size"]
        for split in BOTH
        for row in corpus.rows(both / split)
        if int(str(row["row"])) >= len(first)
    }
    assert ours == theirs
    dropped = lines(out / "dropped.jsonl")
    gone = {record["id"]: record["of"] for record in dropped}
    for row, text in enumerate(second):
        if text in copies:
            assert gone[f"new:{row}"].startswith("old:")
            assert json.dumps(why(old, gone[f"new:{row}"]))
    assert gone[f"new:{len(second) - 1}"].startswith("new:")
    with pytest.raises(ValueError, match="earlier needs near-duplicates"):
        curate.CurateConfig(kind="curate", sources=source("new")["sources"], earlier=["old"])


def test_copies_by_the_published_table(tmp_path: Path, work: Work) -> None:
    texts = texts_of(3, 60)
    write(tmp_path / "web", [*texts, *(f"{text} More." for text in texts for _ in range(2))], 1)
    config = {**CONFIG, "sources": [{"name": "web", "path": "web/*.jsonl"}], "deduplicate": False}
    out, _ = work(curate.JOB, {**config, "rehydrate": "readme"})
    rows = [row for split in BOTH for row in corpus.rows(out / split)]
    table = {1: 1, 2: 2, 3: 3, 4: 3, 5: 5}
    assert {row["copies"] for row in rows} >= {1, 3}
    assert all(row["copies"] == table[min(int(str(row["cluster_size"])), 5)] for row in rows)
