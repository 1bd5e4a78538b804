"""Permissive text with problems to solve in it (arXiv 2509.25531), on a made-up commons of which everything
is known: which pages may be used, and which are copies.

The gate is held against the planted terms, deduplication against the planted copies. A small model then
reads, for as many tokens each, the whole mixture, the mixture without its problems or without its web, or the
web as it is, with what may not be used. Problems are scored by bits per byte: a model of this size solves
none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "mixturevitae.yaml"
WANTED = 0.98  # of precision and recall of the gate
MIXTURES = {
    "mixture": "",
    "without problems": "jobs.mixture.weights={web: 2, reference: 1}",
    "without web": "jobs.mixture.weights={reference: 1, sums: 1}",
    "unrestricted web": "jobs.mixture.weights={web: 1}",
}


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=12", "jobs.base.train.warmup=2"] if short else []
    found = {name: [*quick, *([change] if change else [])] for name, change in MIXTURES.items()}
    found["unrestricted web"].append("jobs.mixture.corpora=[whole]")
    return found


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {
        name: {"prose": _bits(arm["prose-scores"]), "problems": _bits(arm["sums-scores"])}
        for name, arm in arms.items()
    }
    gated = arms["mixture"]
    planted = pq.read_table(
        gated["pool"].path / "train", columns=["id", "source", "terms", "copy"]
    ).to_pylist()
    lines = (gated["gated"].path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = {record["id"]: record["operator"] for record in map(json.loads, lines)}
    # Equal texts are gone before the gate sees them.
    pages = [row for row in planted if row["source"] == "web" and dropped.get(row["id"]) != "reading"]
    passed = [row for row in pages if dropped.get(row["id"]) != "licence-tiers"]
    free = [row for row in passed if row["terms"] == "free"]
    copies = [row for row in free if row["copy"]]
    gone = sum(dropped.get(row["id"]) == "repeated-beginnings" for row in copies)
    found["wanted"] = {"precision": WANTED, "recall": WANTED}
    found["no gate"] = {"precision": sum(row["terms"] == "free" for row in pages) / len(pages), "recall": 1.0}
    found["gate"] = {
        "precision": len(free) / len(passed),
        "recall": len(free) / sum(row["terms"] == "free" for row in pages),
        "copies": gone / max(len(copies), 1),
    }
    return found


def _bits(scores: Any) -> float:
    told = json.loads((scores.path / "scores.json").read_text(encoding="utf-8"))
    return float(told["models"]["base"]["tasks"]["heldout"]["value"])


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        "precision, recall: of the pages that the gate lets through, against the terms that were planted.",
        "copies: share of the planted copies among them that deduplication removes.",
    ]
    outside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(outside)}."] if outside else notes


EXPERIMENT = Experiment(
    slug="mixturevitae",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "prose": "bits/byte of held-out prose",
        "problems": "bits/byte of held-out problems",
        "precision": "of pages let through",
        "recall": "of pages that may be used",
        "copies": "of planted ones removed",
    },
    notes=_notes,
)
