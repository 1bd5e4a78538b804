"""The experiment on AsyncFlow: its arms are recipes, and its claims find what they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.jobs.registry import KINDS
from shunter.papers import catalogue, harness
from shunter.papers.asyncflow import EXPERIMENT
from shunter.recipe.graph import load_recipe


def measured(folder: Path, rate: float, stale: int, once: float = 1.0) -> Any:
    folder.mkdir(parents=True)
    told = {"rows_per_second": rate, "idle": 0.3, "max_staleness": stale, "mean_staleness": stale}
    (folder / "stream.json").write_text(json.dumps({**told, "once": once, "most_live": 9, "order": []}))
    return {"stream": SimpleNamespace(path=folder)}


@pytest.mark.parametrize(
    ("rates", "stale", "broken"),
    [
        ((10, 14, 16), 1, []),
        ((10, 12, 16), 1, ["streaming: at least 1.3 times the rows of tasks in turns"]),
        ((10, 14, 15), 1, ["weights a step older: at least 1.1 times the rows of streaming alone"]),
        ((10, 14, 16), 2, ["no row is written with weights more than one step old"]),
    ],
)
def test_on_given_measurements(
    rates: tuple[float, float, float], stale: int, broken: list[str], tmp_path: Path
) -> None:
    ages = (0, 0, stale)
    arms = {
        name: measured(tmp_path / name, rate, age)
        for name, rate, age in zip(EXPERIMENT.arms(0, False), rates, ages, strict=True)
    }
    found = EXPERIMENT.measure(arms)
    result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == EXPERIMENT.table.keys()
    assert [claim["name"] for claim in result["claims"] if not claim["holds"]] == broken


def test_arms_are_recipes_and_the_paper_says_what_it_lacks() -> None:
    for overrides in EXPERIMENT.arms(1, True).values():
        assert "stream" in load_recipe(EXPERIMENT.recipe, list(overrides), KINDS).nodes
    paper = catalogue.find("asyncflow")
    assert paper.state == "partial"
    assert any("final reward" in lack for lack in paper.lacks)


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end; speeds of so few rows say little."""
    result = harness.reproduce("asyncflow", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["no row is written with weights more than one step old"]
    assert verdicts["every row is learnt from exactly once, as in turns"]
