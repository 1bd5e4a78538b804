"""Models of runs and classifiers, from their jobs to a corpus that they filtered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from shunter.data.curation import ngrams as runs
from shunter.data.curation import quality
from shunter.jobs import classifier, curate, ngrams
from tests.data.webs import paragraphs
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import FILES, lines, write


def texts(seed: int, count: int) -> list[str]:
    """Every second one is prose, the others are its words in no order, with some of their own."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = " ".join(paragraphs(draw, 4)).split()
        if number % 2:
            words = [*draw.permutation(words).tolist(), *["lot", "buy", "now"] * 8]
        found.append(" ".join(words))
    return found


@pytest.fixture
def made(tmp_path: Path, work: Work) -> dict[str, Path]:
    """Both models, from texts of their own."""
    every = texts(1, 80)
    write(tmp_path / "good", every[0::2], 1)
    write(tmp_path / "bad", every[1::2], 1)
    good, bad = ({"name": name, "path": f"{name}/*.jsonl"} for name in ("good", "bad"))
    found = {}
    found["ngrams"], told = work(ngrams.JOB, {"sources": [good], "order": 3})
    assert told["vocabulary"] > 20
    assert 1 < told["heldout_perplexity"] < 200
    found["classifier"], told = work(classifier.JOB, {"wanted": [good], "others": [bad]})
    assert told["heldout_accuracy"] > 0.9
    assert told["heldout_ranking"] > 0.95
    return found


def test_filtered_alike_for_any_cut(tmp_path: Path, work: Work, made: dict[str, Path]) -> None:
    every = texts(2, 60)
    outs = []
    for files, chunk in ((1, 10**9), (3, 2000)):
        write(tmp_path / str(files) / "web", every, files)
        config: dict[str, Any] = {
            "sources": [{"name": "web", "path": "web/*.jsonl"}],
            "operators": [
                {"kind": "perplexity", "share": 0.6},
                {"kind": "quality", "share": None, "limit": 0.5},
            ],
            "ngrams": "n",
            "classifier": "c",
            "heldout": 0,
            "how": {"workers": 1, "chunk_chars": chunk},
        }
        out, _ = work(curate.JOB, config, inputs=made, base=tmp_path / str(files), name=f"n{files}")
        outs.append({name: (out / name).read_bytes() for name in FILES})
    assert outs[0] == outs[1]
    table = pq.read_table(out / "train").to_pylist()
    assert {int(row["id"].split(":")[1]) % 2 for row in table} == {0}
    assert len(table) >= 20
    assert all(row["perplexity"] > 1 and row["quality"] > 0.5 for row in table)
    dropped = lines(out / "dropped.jsonl")
    assert sum(record["operator"] == "perplexity" for record in dropped) == 24  # two fifths of 60
    assert len(json.loads((out / "summary.json").read_text())["operators"]) == 2


def test_a_models_folder_may_be_named(tmp_path: Path, work: Work, made: dict[str, Path]) -> None:
    write(tmp_path / "web", texts(3, 10), 1)
    config: dict[str, Any] = {
        "sources": [{"name": "web", "path": "web/*.jsonl"}],
        "operators": [
            {"kind": "perplexity", "model": str(made["ngrams"].relative_to(tmp_path)), "share": 0.5}
        ],
    }
    _, metrics = work(curate.JOB, config)
    assert metrics["documents"] + metrics["heldout_documents"] == 5
    parsed = curate.CurateConfig(kind="curate", **config)
    assert made["ngrams"] / runs.FILES[0] in curate.JOB.reads(parsed, tmp_path)
    for operator, name in (("perplexity", "ngrams"), ("quality", "classifier")):
        with pytest.raises(ValidationError, match=f"needs `{name}`"):
            curate.CurateConfig(kind="curate", sources=config["sources"], operators=[{"kind": operator}])
    with pytest.raises(ValidationError, match="serves an operator that is not there"):
        curate.CurateConfig(kind="curate", sources=config["sources"], classifier="c")
    assert quality.FILES[0] == "classifier.json"
