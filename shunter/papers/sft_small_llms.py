"""Supervised tuning of a small model over a grid, and what beginnings tell of ends (arXiv 2412.13337).

Batches, rates and schedules on three skills, all over the same number of rows; the same skills in two phases.
The early verdict sees a tenth of each run; successive halving would stop half of the runs there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
ROWS = 640  # that each run reads
SHARE = 0.1  # of them that the early verdict sees
BATCHES, RATES = (8, 32), (3e-4, 1e-3, 3e-3)
SCHEDULES = {"constant": "schedule: constant", "linear": "schedule: wsd, decay: 1.0"}
SKILLS = ("largest", "parity", "count")
PHASED = {rate: f"phased, lr {rate:g}" for rate in RATES}


def _name(batch: int, rate: float, schedule: str) -> str:
    return f"batch {batch}, lr {rate:g}, {schedule}"


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    rows = 64 if short else ROWS
    base = ["jobs.base.train.steps=4", "jobs.base.train.warmup=1"] if short else []
    found: dict[str, list[str]] = {}
    for batch, rate, (schedule, words) in product(BATCHES, RATES, SCHEDULES.items()):
        found[_name(batch, rate, schedule)] = [*base, _train("tuned", rows // batch, batch, rate, words)]
    for rate, name in PHASED.items():
        # Two skills of three, then the third: the same rows in all.
        first = round(rows * 2 / 3 / 8)
        words = SCHEDULES["constant"]
        found[name] = [
            *base, _train("first", first, 8, rate, words), _train("tuned", rows // 8 - first, 8, rate, words),
        ]  # fmt: skip
    return found


def _train(job: str, steps: int, batch: int, rate: float, schedule: str) -> str:
    return (
        f"jobs.{job}.train={{steps: {steps}, batch_rows: {batch}, lr: {rate:.1e}, optimizer: adamw, "
        f"{schedule}, precision: fp32, validate_every: {max(1, steps // 10)}}}"
    )


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    from shunter.evaluate.early import read, scores, spearman, stopped

    grid = {_name(b, r, s): b for b, r, s in product(BATCHES, RATES, SCHEDULES)}
    found = {name: {**_scores(arm), **_best(arm, grid.get(name, 8))} for name, arm in arms.items()}
    logs = {name: read(_log(arms[name]), batch) for name, batch in grid.items()}
    rows = max(points[-1].samples for points in logs.values())
    early = scores(logs, max(round(rows * SHARE), max(BATCHES)))
    ends = [found[name]["accuracy"] for name in grid]
    left = stopped(early)
    best = max(ends)
    alive = max(found[name]["accuracy"] for name in grid if name not in left)
    # Half of the runs stopped at a tenth always saves 45 %: it is worth something where the best goes on.
    spent = sum(SHARE if name in left else 1.0 for name in grid) / len(grid)
    saved = 1 - spent if alive == best else 0.0
    phased = max(found[name]["accuracy"] for name in PHASED.values())
    stacked = max(found[_name(8, rate, "constant")]["accuracy"] for rate in RATES)
    linear = max(found[_name(b, r, "linear")]["accuracy"] for b, r in product(BATCHES, RATES))
    constant = max(found[_name(b, r, "constant")]["accuracy"] for b, r in product(BATCHES, RATES))
    return {
        **found,
        "early verdict": {"rho": spearman([early[name] for name in grid], ends), "saved": saved},
        "no verdict": {"rho": 0.0, "saved": 0.0},
        "all runs": {"best": best},
        "runs that go on": {"best": alive},
        "stacked": {"best": stacked},
        "phased": {"best": phased},
        "linear": {"best": linear},
        "constant": {"best": constant},
    }


def _scores(arm: Arm) -> dict[str, float]:
    told = json.loads((arm["scores"].path / "scores.json").read_text(encoding="utf-8"))["models"]["tuned"][
        "tasks"
    ]
    skills = [float(told[skill]["value"]) for skill in SKILLS]
    return {"accuracy": sum(skills) / len(skills), "bits": float(told["heldout"]["value"])}


def _best(arm: Arm, batch: int) -> dict[str, float]:
    """When the held-out loss was lowest. A phased run's steps of the first phase count."""
    from shunter.evaluate.early import best
    from shunter.record import events

    before = 0
    if "first" in arm:
        rows = events.read_metrics(arm["first"].path / "log" / "events.jsonl")
        before = max(int(row["step"]) for row in rows)
    found = best(_log(arm), batch, before)
    return {"to_best": float(found.samples), "steps_to_best": float(found.steps)}


def _log(arm: Arm) -> Path:
    return arm["tuned"].path / "log" / "events.jsonl"


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        f"All runs read {ROWS} rows of 64 tokens; the early verdict sees the first tenth.",
        "accuracy: mean of three skills, 40 held-out questions each. bits: of the text learnt before.",
        "A batch of 32 rows has seen two steps then. The held-out loss is looked at ten times a run.",
    ]
    rho = verdicts.get("the early verdict ranks the ends")
    if rho is not None and rho["ours"] < 0:
        notes.append("The sign is the other way round here: so small a model is far from a good optimum.")
    return notes


EXPERIMENT = Experiment(
    slug="sft-small-llms",
    recipe=RECIPES / "sft-small-llms.yaml",
    recipes=dict.fromkeys(PHASED.values(), RECIPES / "sft-small-llms-phased.yaml"),
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "accuracy": "share right",
        "bits": "bits/byte of the text before",
        "to_best": "rows until the held-out loss was lowest",
        "steps_to_best": "steps until then",
        "rho": "Spearman's correlation of early score and accuracy",
        "saved": "share of the rows; 0 where the best run was stopped",
        "best": "share right of the best run",
    },
    notes=_notes,
)
