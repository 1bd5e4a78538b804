"""The experiment on AsyncFlow: its arms are recipes, and its claims find what they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.jobs.registry import KINDS
from shunter.papers import harness
from shunter.papers.asyncflow import EXPERIMENT, FIRST, RL
from shunter.recipe.graph import load_recipe


def measured(folder: Path, rate: float, stale: int, once: float = 1.0) -> Any:
    folder.mkdir(parents=True)
    told = {"rows_per_second": rate, "idle": 0.3, "max_staleness": stale, "mean_staleness": stale}
    (folder / "stream.json").write_text(json.dumps({**told, "once": once, "most_live": 9, "order": []}))
    return {"stream": SimpleNamespace(path=folder)}


def learnt(folder: Path, rate: float, stale: int, reward: float) -> Any:
    """A training of steps of 20 samples, whose first ones take a hundred times as long."""
    (folder / "log").mkdir(parents=True)
    lines, now = [], 0.0
    for step in range(1, 21):
        now += 20 / rate * (100 if step <= FIRST else 1)
        values = {"rl/exact": reward * step / 20, "rl/staleness": stale, "rl/max_staleness": stale}
        lines.append(json.dumps({"t": now, "event": "metrics", "attempt": 1, "step": step, "values": values}))
    (folder / "log" / "events.jsonl").write_text("\n".join(lines) + "\n")
    what = {"group": 4, "prompts_per_step": 5}
    return {"tuned": SimpleNamespace(path=folder, manifest=SimpleNamespace(what=what))}


SLOW = "streaming: at least 1.3 times the rows of tasks in turns"
LESS = "rl, weights a step older: the last reward is at most a tenth less than in turns"
ONE = "rl on all cores, weights a step older: at least 1.1 times the samples of one process in turns"


@pytest.mark.parametrize(
    ("rates", "stale", "reward", "broken"),
    [
        ((10, 14, 16), 1, 0.8, []),
        ((10, 12, 16), 1, 0.8, [SLOW, "rl, streamed: at least 1.3 times the samples of rl in turns"]),
        (
            (10, 14, 15),
            1,
            0.8,
            [
                "weights a step older: at least 1.1 times the rows of streaming alone",
                "rl, weights a step older: at least 1.1 times the samples of streaming alone",
                ONE,
            ],
        ),
        (
            (10, 14, 16),
            2,
            0.8,
            [
                "no row is written with weights more than one step old",
                "rl: no token is written with weights more than one step old",
            ],
        ),
        ((10, 14, 16), 1, 0.6, [LESS]),
    ],
)  # fmt: skip
def test_on_given_measurements(
    rates: tuple[float, float, float], stale: int, reward: float, broken: list[str], tmp_path: Path
) -> None:
    ages, ways = (0, 0, stale), ("rl in turns", "rl queue", "rl delayed")
    arms = {
        name: measured(tmp_path / name, rate, age)
        for name, rate, age in zip(("sequential", "queue", "delayed"), rates, ages, strict=True)
    }
    rewards = (0.8, 0.8, reward)
    for name, rate, age, last in zip(ways, rates, ages, rewards, strict=True):
        arms[name] = learnt(tmp_path / name, rate, age, last)
    arms["rl in turns, all cores"] = learnt(tmp_path / "both", rates[1], 0, 0.8)
    arms["rl delayed, all cores"] = learnt(tmp_path / "lent", rates[2], stale, reward)
    assert arms.keys() == EXPERIMENT.arms(0, False).keys()
    found = EXPERIMENT.measure(arms)
    assert found["rl queue"]["rows_per_second"] == pytest.approx(rates[1])
    result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == EXPERIMENT.table.keys()
    assert [claim["name"] for claim in result["claims"] if not claim["holds"]] == broken


def test_arms_are_recipes_and_differ_where_they_should() -> None:
    arms = EXPERIMENT.arms(1, True)
    nodes = {
        name: load_recipe(EXPERIMENT.recipes.get(name, EXPERIMENT.recipe), ["seed=1", *more], KINDS).nodes
        for name, more in arms.items()
    }
    assert (
        {name for name, each in nodes.items() if "tuned" in each}
        == set(RL)
        == {*EXPERIMENT.apart, "rl delayed"}
    )
    how = {name: nodes[name]["tuned"].config for name in RL}
    ways = {
        name: (it.staleness, it.apart, it.how.threads, it.how.at_once, it.how.early)  # type: ignore[attr-defined]
        for name, it in how.items()
    }
    assert ways == {
        "rl delayed": (1, True, 1, 8, True),
        "rl in turns": (0, False, 1, 8, True),
        "rl queue": (0, True, 1, 8, True),
        "rl in turns, all cores": (0, False, 0, 64, True),
        "rl delayed, all cores": (1, True, 0, 64, True),
    }


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end; speeds of so few rows say little."""
    result = harness.reproduce("asyncflow", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["no row is written with weights more than one step old"]
    assert verdicts["every row is learnt from exactly once, as in turns"]
    assert verdicts["rl: no token is written with weights more than one step old"]
