"""mix: shares as asked, a record for what is not shown, columns kept, tokens made in copies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation.why import why
from shunter.jobs import mix, tokenizer
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import lines


def made(folder: Path, source: str, texts: list[str], **facts: list[str]) -> Path:
    """A corpus; a tenth of it held out."""
    for split, rows in (("train", range(len(texts))), ("heldout", range(len(texts) // 10))):
        writer = corpus.Writer(folder / split, {name: pa.string() for name in facts})
        for row in rows:
            name = f"{source}:{row}" if split == "train" else f"{source}:{1000 + row}"
            writer.write(name, source, row, texts[row], *(values[row] for values in facts.values()))
        writer.close()
    summary = {"sources": {source: {"licence": "mine"}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    one = made(tmp_path / "one", "one", ["x" * 100] * 50, tier=["1", "3"] * 25, other=["o"] * 50)
    two = made(tmp_path / "two", "two", ["y" * 50] * 40, tier=["3"] * 40)
    return [one, two]


def test_shares_records_and_columns(tmp_path: Path, work: Work, corpora: list[Path]) -> None:
    config: dict[str, Any] = {"corpora": ["a", "b"], "weights": {"one": 1, "two": 3}, "budget": 8000}
    out, metrics = work(mix.JOB, config, inputs={"corpora": corpora})
    table = pq.read_table(out / "train").to_pylist()
    shown: Counter[str] = Counter()
    for row in table:
        shown[row["source"]] += row["copies"] * len(row["text"])
    assert shown == {"one": 2000, "two": 6000}
    assert metrics["shown_bytes"] == 8000
    assert {row["copies"] for row in table if row["source"] == "two"} == {3}
    dropped = lines(out / "dropped.jsonl")
    assert len(dropped) == 30
    assert {record["reason"] for record in dropped} == {"beyond the budget"}
    assert why(out, dropped[0]["id"])["operator"] == "mix"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mixture"]["two"]["epochs"] == 3
    assert summary["columns_left"] == ["other"]
    assert set(table[0]) == {"id", "source", "row", "text", "tier", "copies"}
    again, _ = work(mix.JOB, config, inputs={"corpora": corpora}, name="again")
    assert (again / "train/00000.parquet").read_bytes() == (out / "train/00000.parquet").read_bytes()


def test_by_tier_and_documents(tmp_path: Path, work: Work, corpora: list[Path]) -> None:
    config: dict[str, Any] = {
        "corpora": ["a", "b"], "by": "tier", "weights": {"1": 1}, "unit": "documents", "epochs": 1,
    }  # fmt: skip
    out, metrics = work(mix.JOB, config, inputs={"corpora": corpora})
    assert metrics["documents"] == 25
    assert {row["tier"] for row in pq.read_table(out / "train").to_pylist()} == {"1"}
    assert {row["tier"] for row in pq.read_table(out / "heldout").to_pylist()} == {"1"}
    reasons = Counter(record["reason"] for record in lines(out / "dropped.jsonl"))
    assert reasons == {"a group without weight": 65}


def test_tokens_are_counted(tmp_path: Path, work: Work, corpora: list[Path]) -> None:
    words, _ = work(tokenizer.JOB, {"corpus": "c", "vocab_size": 262}, inputs={"corpus": corpora[0]})
    config: dict[str, Any] = {
        "corpora": ["a", "b"], "tokenizer": "t", "unit": "tokens",
        "weights": {"one": 1, "two": 1}, "budget": 500,
    }  # fmt: skip
    out, metrics = work(mix.JOB, config, inputs={"corpora": corpora, "tokenizer": words})
    assert metrics["share of one"] == pytest.approx(0.5, abs=0.15)
    assert json.loads((out / "summary.json").read_text())["unit"] == "tokens"


def test_mistakes(tmp_path: Path, work: Work, corpora: list[Path]) -> None:
    for config, message in (
        ({"weights": {"three": 1}}, "no document has source 'three'"),
        ({"by": "other"}, "no column 'other'"),
    ):
        with pytest.raises(ShunterError, match=message):
            work(mix.JOB, {"corpora": ["a", "b"], **config}, inputs={"corpora": corpora})
    with pytest.raises(ShunterError, match="two documents are called"):
        work(mix.JOB, {"corpora": ["a", "b"]}, inputs={"corpora": [corpora[0], corpora[0]]})
    for config, message in (
        ({"unit": "tokens"}, "needs a tokenizer"),
        ({"weights": {"a": 0}}, "one at least"),
    ):
        with pytest.raises(ValidationError, match=message):
            mix.MixConfig(kind="mix", corpora=["a"], **config)  # type: ignore[arg-type]
