"""Edit programs by a small model (arXiv 2507.03253), on made-up pages of which it is known what is noise.

An expert who errs and sometimes rewrites is distilled to programs; a model of 2.4 million weights learns
them, and another of its size learns to write the refined texts themselves. Over a web of other pages, what
either makes of it is held against the planted noise, and a small model reads it for as many tokens: the web
as it is, with lines deleted by patterns, with its worse half dropped, written anew, edited by programs, or
without noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "refinex.yaml"
ARMS = {
    "raw": "web",
    "rules": "ruled",
    "dropping": "chosen",
    "rewriting": "rewritten",
    "programs": "refined",
    "no noise": "truth",
}
TRAINED = ("program-base", "rewrite-base", "refiner", "rewriter", "base")


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = [f"jobs.{job}.train={{steps: 4, batch_rows: 2, lr: 1.0e-3, precision: fp32}}" for job in TRAINED]
    quick += [f"jobs.{job}.texts=500" for job in ("lessons", "expert")]
    quick += [f"jobs.{job}.texts=40" for job in ("web", "truth", "supervised")]
    return {name: [*(quick if short else []), f"jobs.rows.corpus={corpus}"] for name, corpus in ARMS.items()}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    from shunter.data import corpus

    given = arms["programs"]
    web = list(corpus.rows(given["web"].path / "train"))
    found: dict[str, dict[str, float]] = {"none": {"new": 0.0}}
    for name, job in {**ARMS, "expert": "supervised"}.items():
        left = {text.id: text.text for text in corpus.texts(given[job].path / "train")}
        found[name] = _marked(web, left, _written(given[job].path))
        if name in arms:
            scores = json.loads((arms[name]["scores"].path / "scores.json").read_text(encoding="utf-8"))
            found[name]["bits"] = float(scores["models"]["base"]["tasks"]["heldout"]["value"])
    edits = _edits(given["refined"].path)
    calls = edits.get("calls", 0) + edits.get("calls skipped", 0) + edits.get("malformed calls", 0)
    found["programs"]["wrong"] = (calls - edits.get("calls", 0)) / max(calls, 1)
    return found


def _marked(web: Sequence[Mapping[str, Any]], left: Mapping[str, str], tokens: int) -> dict[str, float]:
    from shunter.data.curation.differences import Marks

    marks = Marks()
    for row in web:
        noise = [(low, high) for low, high in json.loads(row["noise"])]
        marks.add(row["text"], left.get(row["id"], ""), noise)
    return {
        "f1": marks.span_f1,
        "new": marks.new_words,
        "deleted": marks.deletion_ratio,
        "improved": marks.improved_share,
        **({"tokens": tokens / len(web)} if tokens else {}),
    }


def _edits(folder: Path) -> dict[str, int]:
    """What the last operator of a chain counted; nothing of a corpus without one."""
    told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    counts: dict[str, int] = told.get("operators", [{"edits": {}}])[-1]["edits"]
    return counts


def _written(folder: Path) -> int:
    return _edits(folder).get("tokens written", 0)


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        "Seeds are of the web and of the model that reads; refiner and rewriter were trained once.",
        "f1: of characters taken away against those that were planted, by one difference for all ways.",
        "improved: of the pages with noise, nearer to the clean page than before, by characters.",
        "wrong: calls that were malformed, out of range or not unique.",
    ]
    outside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(outside)}."] if outside else notes


EXPERIMENT = Experiment(
    slug="refinex",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "bits": "bits/byte of clean held-out text",
        "f1": "of the characters taken away",
        "new": "new words by 1,000",
        "deleted": "share of the characters",
        "improved": "share of the pages with noise",
        "tokens": "written a page",
        "wrong": "share of the calls",
    },
    notes=_notes,
)
