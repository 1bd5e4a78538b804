"""Tasks of reinforcement learning streamed through a store (arXiv 2507.01663): tasks that sleep, and `rl`.

What streaming and older weights gain is a matter of who waits for whom, which sleeping tasks show without
competing for cores. Beside them the job `rl` learns on two cores, one for each of two processes: with a real
model, and with rewards that can be compared. Where a step is streamed its update is a task like the others,
which takes groups as they come and adds up their gradients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.record import events

PAPERS = Path(__file__).parents[2] / "recipes" / "papers"
RECIPE = PAPERS / "asyncflow.yaml"
MODES = ("sequential", "queue", "delayed")
TURNS = ("jobs.tuned.staleness=0", "jobs.tuned.how.writer=here", "jobs.tuned.how.swap=tokens")
ALL = ("jobs.tuned.how.threads=0", "jobs.tuned.how.at_once=64")  # of a step's 64, as people run it
RL: Mapping[str, Sequence[str]] = {  # delayed first: others take from its store what comes before `rl`
    "rl delayed": [],
    "rl in turns": [*TURNS],
    "rl queue": ["jobs.tuned.staleness=0"],
    "rl in turns, all cores": [*TURNS, *ALL],
    "rl delayed, all cores": [*ALL],
}
FIRST = 5  # steps until all is warm, which are not timed
LAST = 10  # steps whose reward is the last


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    size = ["jobs.stream.steps=3", "jobs.stream.rows=8"] if short else []
    quick = [
        "jobs.pairs.sampled.count=20", "jobs.judge.train.steps=1", "jobs.judge.train.warmup=0",
        f"jobs.tuned.train.steps={FIRST + 2}", "jobs.tuned.prompts_per_step=2",
    ]  # fmt: skip
    arms = {mode: [f"jobs.stream.mode={mode}", f"jobs.stream.seed={seed}", *size] for mode in MODES}
    return arms | {name: [*more, *(quick if short else [])] for name, more in RL.items()}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    names = ("rows_per_second", "idle", "max_staleness", "mean_staleness", "once", "most_live")
    found: dict[str, Samples] = {}
    for name, arm in arms.items():
        if "tuned" in arm:
            what = arm["tuned"].manifest.what
            found[name] = _learnt(arm["tuned"].path, what["group"] * what["prompts_per_step"])
            continue
        told = json.loads((arm["stream"].path / "stream.json").read_text(encoding="utf-8"))
        found[name] = {key: float(told[key]) for key in names}
    return found


def _learnt(folder: Path, samples: int) -> Samples:
    """Of a training with so many samples a step: rates are of the steps after the first ones, by the clock of
    its log."""
    rows = events.read_metrics(folder / "log" / "events.jsonl")
    timed = rows[FIRST:]
    seconds = rows[-1]["t"] - rows[FIRST - 1]["t"]
    return {
        "rows_per_second": samples * len(timed) / seconds,
        "max_staleness": max(row.get("rl/max_staleness", 0.0) for row in rows),
        "mean_staleness": _mean([row["rl/staleness"] for row in timed]),
        "waited": sum(row.get("rl/waited", 0.0) for row in timed) / seconds,
        "first_reward": rows[0]["rl/exact"],
        "last_reward": _mean([row["rl/exact"] for row in rows[-LAST:]]),
        "whole_reward": _mean([row["rl/exact"] for row in rows]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "sequential, queue, delayed: tasks sleep: the gain is one of scheduling, on threads of one process.",
        "Four writers, one worker for each other task; rows take log-normal times, the same in all arms.",
        "rl ...: a model of 3.4M parameters on CPU cores, one for each process; after the first steps.",
        "rl queue, rl delayed: a step's gradients are taken as its groups come; in turns they are not.",
        "rl ..., all cores: one process or two on all that the machine has, lent to whoever computes; all of "
        "a step is written side by side.",
        "The paper's planner is not here, and no GPU was measured.",
    ]


EXPERIMENT = Experiment(
    slug="asyncflow",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    recipes=dict.fromkeys(RL, PAPERS / "asyncflow-rl.yaml"),
    apart=tuple(name for name in RL if name != "rl delayed"),
    table={
        "rows_per_second": "rows/s",
        "idle": "share of workers' time",
        "waited": "share of the time in which learning waits",
        "max_staleness": "steps",
        "mean_staleness": "steps",
        "once": "1 where each row was learnt from exactly once",
        "most_live": "rows in the store at most",
        "first_reward": "share of right answers in the first step",
        "last_reward": f"share of right answers in the last {LAST} steps",
        "whole_reward": "share of right answers in all steps: the area under the curve",
    },
    notes=_notes,
)
