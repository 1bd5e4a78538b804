"""by-site: one site is done before the next begins, nothing is lost, and each document's place is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation.addresses import hostname
from shunter.data.curation.why import why
from shunter.jobs import sites
from tests.jobs.conftest import Work

HOSTS = ["https://a.example/", "https://b.example/x", "http://A.example/2", ""]


@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(1, 9)), max_size=20), st.integers(0, 30))
def test_a_site_is_done_before_the_next(pairs: list[tuple[str, int]], chars: int) -> None:
    names = [hostname(url) for url, _ in pairs]
    known = sorted(set(names) - {""})
    of = np.array([known.index(name) if name else -1 for name in names], np.int64)
    lengths = np.array([size for _, size in pairs], np.int64)
    order = sites.grouped(of)
    places = order.tolist()
    assert sorted(places) == list(range(len(pairs)))
    hosts = [names[place] for place in places]
    runs = [host for at, host in enumerate(hosts) if host and (at == 0 or hosts[at - 1] != host)]
    assert len(runs) == len(set(runs))
    firsts = [
        place for at, place in enumerate(places) if at == 0 or hosts[at - 1] != hosts[at] or not hosts[at]
    ]
    assert firsts == sorted(firsts), "sites by their first document"
    counts = sites.joins(of[order], np.zeros(len(of), np.int64), lengths[order], chars)
    assert counts.sum() == len(places)
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        part = places[end - count : end]
        assert len({names[place] for place in part}) == 1
        size = sum(int(lengths[place]) for place in part) + 2 * (len(part) - 1)
        assert len(part) == 1 or (size <= chars and names[part[0]])


def made(folder: Path, facts: dict[str, pa.DataType]) -> Path:
    for split, count in (("train", 6), ("heldout", 1)):
        writer = corpus.Writer(folder / split, facts)
        for row in range(count):
            writer.write(f"{split}:{row}", "web", row, f"text {row}", *([HOSTS[row % 4]] if facts else []))
        writer.close()
    (folder / "summary.json").write_text(json.dumps({"sources": {"web": {"licence": "mine"}}}))
    return folder


def test_joined_with_a_record(tmp_path: Path, work: Work) -> None:
    one = made(tmp_path / "one", {"url": pa.string()})
    out, metrics = work(sites.JOB, {"corpus": "c", "chars": 20}, inputs={"corpus": one})
    table = pq.read_table(out / "train").to_pylist()
    assert [row["parts"] for row in table] == [
        ["train:0", "train:2"],
        ["train:4"],
        ["train:1", "train:5"],
        ["train:3"],
    ]
    assert table[0]["text"] == "text 0\n\ntext 2"
    assert why(out, "train:2")["of"] == "train:0"
    assert (metrics["joined"], metrics["sites"]) == (2, 2)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sources"]["web"]["train documents"] == 4
    plain, _ = work(sites.JOB, {"corpus": "c"}, inputs={"corpus": one}, name="plain")
    order = [row["id"][-1] for row in pq.read_table(plain / "train").to_pylist()]
    assert order == ["0", "2", "4", "1", "5", "3"]


def test_joined_documents_are_of_one_tier(tmp_path: Path, work: Work) -> None:
    writer = corpus.Writer(tmp_path / "one" / "train", {"url": pa.string(), "tier": pa.string()})
    for row, tier in enumerate("1133"):
        writer.write(f"s:{row}", "s", row, "x", HOSTS[0], tier)
    writer.close()
    corpus.Writer(tmp_path / "one" / "heldout", {"url": pa.string(), "tier": pa.string()}).close()
    (tmp_path / "one" / "summary.json").write_text("{}")
    out, _ = work(sites.JOB, {"corpus": "c", "chars": 99}, inputs={"corpus": tmp_path / "one"})
    table = pq.read_table(out / "train").to_pylist()
    assert [(row["tier"], row["parts"]) for row in table] == [("1", ["s:0", "s:1"]), ("3", ["s:2", "s:3"])]


def test_without_addresses_it_is_refused(tmp_path: Path, work: Work) -> None:
    with pytest.raises(ShunterError, match="no column 'url'"):
        work(sites.JOB, {"corpus": "c"}, inputs={"corpus": made(tmp_path / "one", {})})
