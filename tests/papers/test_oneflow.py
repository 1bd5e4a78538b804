"""The experiment on OneFlow's layouts: its arms are recipes, its claims find what they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.papers import catalogue, harness
from shunter.papers.oneflow import EXPERIMENT
from shunter.recipe.graph import load_recipe


def counted(folder: Path, predicted: int, moved: int | None, gap: float = 0.0) -> Any:
    folder.mkdir(parents=True)
    told: dict[str, Any] = {"predicted": predicted, "exact": True}
    if moved is not None:
        told |= {"bytes": moved, "gap": gap}
    (folder / "traffic.json").write_text(json.dumps(told))
    return {"traffic": SimpleNamespace(path=folder)}


def test_on_ideal_measurements(tmp_path: Path) -> None:
    arms = {}
    for number, (name, overrides) in enumerate(EXPERIMENT.arms(0, False).items()):
        bytes_ = 1000 if name.startswith("chosen") else 10_000
        moved = bytes_ if "jobs.traffic.run=true" in overrides else None
        arms[name] = counted(tmp_path / str(number), bytes_, moved)
    found = EXPERIMENT.measure(arms)
    assert found["chosen, even block, 8 ranks"]["of_rows"] == pytest.approx(0.1)
    result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == EXPERIMENT.table.keys()
    assert result["holds"]
    worse = {**found, "counted: chosen, even block, 4 ranks": {"bytes": 0.001001, "gap": 1e-3}}
    result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), worse), seconds=1.0, short=False)
    broken = [claim["name"] for claim in result["claims"] if not claim["holds"]]
    assert broken == [
        "chosen, even block: bytes counted are bytes predicted",
        "chosen, even block: every tensor is one process's, within 1e-12",
    ]


def test_every_arm_is_a_recipe_that_can_run() -> None:
    from shunter.jobs.registry import KINDS

    for short in (False, True):
        for overrides in EXPERIMENT.arms(0, short).values():
            graph = load_recipe(EXPERIMENT.recipe, ["seed=0", *overrides], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, EXPERIMENT.recipe.parent)


def test_the_actor_runtime_keeps_the_paper_partial() -> None:
    paper = catalogue.find("oneflow")
    assert paper.state == "partial"
    assert any("actor engine" in lack for lack in paper.lacks)
    assert not [lack for lack in paper.lacks if lack.startswith("test not found")]
