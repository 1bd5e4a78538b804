"""Tasks of reinforcement learning streamed through a store (arXiv 2507.01663), on tasks that sleep.

What streaming and older weights gain is a matter of who waits for whom, which sleeping tasks show without
competing for cores. That training ends as well is not shown by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "asyncflow.yaml"
MODES = ("sequential", "queue", "delayed")


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    size = ["jobs.stream.steps=3", "jobs.stream.rows=8"] if short else []
    return {mode: [f"jobs.stream.mode={mode}", f"jobs.stream.seed={seed}", *size] for mode in MODES}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    names = ("rows_per_second", "idle", "max_staleness", "mean_staleness", "once", "most_live")
    found = {}
    for name, arm in arms.items():
        told = json.loads((arm["stream"].path / "stream.json").read_text(encoding="utf-8"))
        found[name] = {key: float(told[key]) for key in names}
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "Tasks sleep: the gain is one of scheduling, on threads of one process.",
        "Four writers, one worker for each other task; rows take log-normal times, the same in all arms.",
        "The paper's reward curves, planner and engines are not measured here.",
    ]


EXPERIMENT = Experiment(
    slug="asyncflow",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "rows_per_second": "rows/s",
        "idle": "share of workers' time",
        "max_staleness": "steps",
        "mean_staleness": "steps",
        "once": "1 where each row was learnt from exactly once",
        "most_live": "rows in the store at most",
    },
    notes=_notes,
)
