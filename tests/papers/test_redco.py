"""The experiment on Redco: its arms are recipes, its claims find what they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shunter.papers import harness
from shunter.papers.redco import EXPERIMENT, PAIRS, TABLES, TASKS
from shunter.recipe.graph import load_recipe


def logged(folder: Path, name: str, *, sums: int, gap: float = 0.0) -> Any:
    parts = 1 if name.endswith(("one process", "copies")) else int(name[-1]) if "tp" in name else 4
    told: list[dict[str, Any]] = [
        {"event": "step", "step": step, "loss": 3.0 - step + gap} for step in (1, 2)
    ]
    told.append({"event": "task", "bytes_here": 1_000_000 // parts})
    if not name.endswith("one process"):
        bytes_ = {"all-reduce": 5000 if name.endswith("sharded") else 1000}
        told.append(
            {
                "event": "traffic",
                "ranks": [{"bytes": bytes_, "forward": {"all-reduce": sums + TABLES[name.partition(",")[0]]}}]
                * 4,
            }
        )
    (folder / "log").mkdir(parents=True)
    (folder / "log" / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    return {"own": SimpleNamespace(path=folder)}


def test_on_ideal_measurements(tmp_path: Path) -> None:
    def verdicts(gap: float, more: int) -> tuple[bool, list[str], set[str]]:
        arms = {}
        for number, name in enumerate(EXPERIMENT.arms(0, False)):
            sums = PAIRS[name.partition(",")[0]] + (more if name == "t5, tp 4" else 0)
            folder = tmp_path / f"{gap}-{number}"
            arms[name] = logged(folder, name, sums=sums, gap=gap if name == "opt, tp 2" else 0.0)
        found = EXPERIMENT.measure(arms)
        result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
        broken = [claim["name"] for claim in result["claims"] if not claim["holds"]]
        return result["holds"], broken, {row["metric"] for row in result["table"]}

    assert verdicts(0.0, 0) == (True, [], set(EXPERIMENT.table))
    assert verdicts(1e-3, 2)[1] == [
        "T5 over four: one sum for each attention and feed-forward layer, forward",
        "OPT over two: every step's loss is one process's, within 1e-5",
    ]


def test_every_arm_is_a_recipe_that_can_run() -> None:
    from shunter.jobs.registry import KINDS

    for short in (False, True):
        for overrides in EXPERIMENT.arms(0, short).values():
            graph = load_recipe(EXPERIMENT.recipe, ["seed=0", *overrides], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, EXPERIMENT.recipe.parent)
    assert set(EXPERIMENT.apart) < set(EXPERIMENT.arms(0, False))
    assert len(TASKS) == 3
