"""The experiment on HybridFlow: its arms are recipes, and its claims find what they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.jobs.registry import KINDS
from shunter.layout.generation import Hybrid, transition
from shunter.papers import catalogue, harness
from shunter.papers.hybridflow import DEVICES, EXPERIMENT, LAYOUTS, PLACEMENTS, STYLES
from shunter.recipe.graph import load_recipe


def measured(folder: Path, *, extra: int = 0, loss: float = 0.0, slower: float = 0.0) -> dict[str, Any]:
    """Ideal measurements of all arms, but for what is asked. extra: bytes of the first of ours."""
    arms: dict[str, Any] = {}
    for layout, degrees in LAYOUTS.items():
        for style in STYLES:
            table = transition(style, Hybrid(**degrees), 2**20)
            even = {key: value for key, value in table._asdict().items()}
            if style == "hybridflow":
                even["received"] += extra
            told = {"even": even, "weights": 2**20, "table": table._asdict(), "right": True, "counted": True}
            place = folder / f"{style} {layout}"
            place.mkdir(parents=True)
            (place / "reshard.json").write_text(json.dumps({**told, "seconds": 0.1}))
            arms[f"{style}, {layout}"] = {"reshard": SimpleNamespace(path=place)}
    jobs = {}
    for job in PLACEMENTS.values():
        place = folder / job
        (place / "log").mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"weights")
        value = 0.5 + (loss if job == "split" else 0.0)
        event = {"event": "metrics", "step": 1, "values": {"rl/policy_loss": value}, "time": 0.0}
        (place / "log" / "events.jsonl").write_text(json.dumps(event) + "\n")
        manifest = SimpleNamespace(metrics={"moved_bytes": 1000, "control_bytes": 10})
        jobs[job] = SimpleNamespace(path=place, manifest=manifest)
    arms["placements"] = jobs
    mapped = {}
    for number, devices in enumerate(DEVICES):
        fixed = {name: {"seconds": 2.0} for name in ("colocate", "split", "standalone")}
        winner = "split" if number > 2 else "colocate"
        mapped[str(devices)] = {"chosen": {"seconds": 2.0 + slower}, **fixed, "winner": winner}
    place = folder / "mapping"
    place.mkdir()
    (place / "mapping.json").write_text(json.dumps(mapped))
    arms["mapping"] = {"mapping": SimpleNamespace(path=place)}
    return arms


@pytest.mark.parametrize(
    ("more", "broken"),
    [
        ({}, 0),
        ({"extra": 1}, len(LAYOUTS)),
        ({"loss": 1e-9}, 1),
        ({"slower": 0.1}, len(DEVICES)),
    ],
    ids=str,
)
def test_on_given_measurements(more: dict[str, Any], broken: int, tmp_path: Path) -> None:
    found = EXPERIMENT.measure(measured(tmp_path, **more))
    result = harness.conclude(EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == EXPERIMENT.table.keys()
    assert sum(not claim["holds"] for claim in result["claims"]) == broken


def test_arms_are_recipes() -> None:
    for short in (True, False):
        for arm, overrides in EXPERIMENT.arms(1, short).items():
            path = EXPERIMENT.recipes.get(arm, EXPERIMENT.recipe)
            graph = load_recipe(path, ["seed=1", *overrides], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, path.parent)
    assert not [lack for lack in catalogue.find("hybridflow").lacks if "test not found" in lack]


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end."""
    result = harness.reproduce("hybridflow", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["split: the weights of one process, bit for bit"]
