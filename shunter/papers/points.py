"""POINTS' perplexity filter alone (arXiv 2409.04828, section 3.3), on texts: all of a pool, a random fifth of
it, and the fifth of lowest perplexity, each read for as many steps by a small model.

The pool is the made-up web of `fineweb2`, near-duplicates removed; it is known which texts are clean.
The model of runs that judges learnt from other clean texts: the paper warns of a filter that is the model
it serves. The paper's captions, tiling and soups are not here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "points.yaml"
ARMS = {"all": "once", "random fifth": "random", "lowest fifth": "lowest"}


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=12", "jobs.base.train.warmup=2", "jobs.web.texts=120"] if short else []
    return {name: [*quick, f"jobs.rows.corpus={corpus}"] for name, corpus in ARMS.items()}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {}
    for name, arm in arms.items():
        scores = json.loads((arm["scores"].path / "scores.json").read_text(encoding="utf-8"))
        truth = pq.read_table(arm["web"].path / "train", columns=["id", "quality"]).to_pylist()
        quality = {row["id"]: row["quality"] for row in truth}
        names = pq.read_table(arm[ARMS[name]].path / "train", columns=["id"]).column("id").to_pylist()
        counts = Counter(quality[each] for each in names)
        found[name] = {
            "bits": float(scores["models"]["base"]["tasks"]["heldout"]["value"]),
            "clean": counts["clean"] / len(names),
            "unordered": counts["scrambled"] / len(names),
            "documents": float(len(names)),
        }
    whole = found["all"]["documents"]
    found["lowest fifth"] = {**found["lowest fifth"], "share": found["lowest fifth"]["documents"] / whole}
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        "clean, unordered: shares of the documents that the model is shown.",
        "Only the perplexity filter of the paper is measured here, on texts in place of captions.",
    ]
    outside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(outside)}."] if outside else notes


EXPERIMENT = Experiment(
    slug="points",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "bits": "bits/byte of clean held-out text",
        "clean": "share shown",
        "unordered": "share shown",
        "documents": "kept",
        "share": "of all documents",
    },
    notes=_notes,
)
