"""The experiments on placement, NICs and tuning: their arms are recipes that can run, their claims find
what they ask for, and break when the measurement does."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.papers import catalogue, frontier, harness, holmes, holmes_clusters, pipette, pipette_memory
from shunter.papers.holmes_clusters import CLUSTERS, Emulated
from shunter.parallel.live import Sample, measured_peak
from shunter.plan import frontier as tuning
from shunter.plan.trials import Failed, Space
from shunter.recipe.graph import load_recipe


@pytest.mark.parametrize("paper", [pipette, holmes, frontier], ids=lambda module: module.EXPERIMENT.slug)
def test_every_arm_is_a_recipe_that_can_run(paper: Any) -> None:
    from shunter.jobs.registry import KINDS

    experiment = paper.EXPERIMENT
    for name, overrides in experiment.arms(0, True).items():
        recipe = experiment.recipes.get(name, experiment.recipe)
        for node in load_recipe(recipe, ["seed=0", *overrides], KINDS).nodes.values():
            node.job.check(node.config, recipe.parent)
    demanded = catalogue.read_toml("must_haves.toml")[experiment.slug]["must_have"]
    assert all(must["tests"] for must in demanded)
    lacks = catalogue.find(experiment.slug).lacks
    assert not [lack for lack in lacks if lack.startswith(("test not found", "no claim", "untested"))]


def emulated(folder: Path, steps: dict[str, float]) -> Any:
    folder.mkdir(parents=True)
    told = {name: [seconds + 0.01, seconds] for name, seconds in steps.items()}
    (folder / "emulated.json").write_text(json.dumps(told))
    return {"emulation": SimpleNamespace(path=folder, manifest=SimpleNamespace(what={"seed": 0}))}


def test_holmes_on_ideal_measurements(tmp_path: Path) -> None:
    """Steps as the event simulation says them: claims hold, and break where types make no difference."""

    def conclude(name: str, same: bool) -> dict[str, Any]:
        arms = {}
        for it in CLUSTERS:
            steps = {each: it.simulated(case, 0) for each, case in it.cases().items()}
            if "overlapped" in steps:
                steps["overlapped"] = 0.9 * steps["aware"]
            if same and "blind" in steps:
                steps["aware"] = steps["blind"]
            arms[it.name] = emulated(tmp_path / name / it.name, steps)
        found = holmes.EXPERIMENT.measure(arms)
        return harness.conclude(holmes.EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)

    result = conclude("apart", False)
    assert result["holds"], [claim for claim in result["claims"] if not claim["holds"]]
    assert {row["metric"] for row in result["table"]} == holmes.EXPERIMENT.table.keys()
    for row in result["table"]:  # each says which it is
        assert row["arm"].startswith(("emulated ", "simulated "))
        assert ("emulated" in row["unit"]) != ("simulated" in row["unit"])
        assert len(row["arm"]) <= 40  # numbers beside it, in 80 columns
    gains = {row["arm"]: row["mean"] for row in result["table"] if row["metric"].endswith("gain")}
    assert gains["emulated 2 IB 2 RoCE: messages 2"] < 1
    assert all(gains[f"simulated {devices} devices"] > 1.3 for devices in holmes.SIZES)
    failed = [claim["arms"] for claim in conclude("alike", True)["claims"] if not claim["holds"]]
    assert len([arms for arms in failed if arms[0].endswith("blind")]) == 4


@pytest.mark.parametrize("it", CLUSTERS, ids=lambda it: it.name)
def test_holmes_clusters_differ_in_what_mixes(it: Emulated) -> None:
    """Only the type-blind layout has data groups across types; each seed has links of its own."""
    cluster = Cluster.of(it.described(0))
    for grid, mixes in zip(it.grids(), (True, False), strict=True):
        stages = [grid[stage :: it.stages] for stage in range(it.stages)]
        assert any(len(cluster.nics(stage)) > 1 for stage in stages) == mixes
    for case in it.cases().values():
        assert sum(case["gradients"]) == pytest.approx(holmes_clusters.LAYERS * holmes_clusters.LAYER)
    assert it.described(0) == it.described(0) != it.described(1)


def test_the_planner_s_first_trial_is_a_good_one() -> None:
    """It knows the machine's file alone; the simulator that judges has numbers of its own."""
    machine = tuning.Machine(files.find("8xmi250x"))
    knobs = {"pp": (4, 8, 16), "tp": (2, 4, 8), "rows": (1, 2, 4), "accumulation": (10,), "zero": (0, 1)}
    space, run = tuning.study(tuning.GPT_175B, machine, {**knobs, "nodes": (16,)})
    values = {}
    for point in space.points():
        with suppress(Failed):
            values[Space.key(point)] = run(point)
    assert 0 < len(values) < len(list(space.points())) / 2  # most do not fit
    assert values[Space.key(frontier.planned(space))] > 0.85 * max(values.values())


def test_a_count_of_tensors_is_near_what_is_alive() -> None:
    for it in (
        Sample(4, 64, 4, 2, 1, 1, 2, 8),
        Sample(8, 96, 4, 4, 2, 2, 4, 32),
        Sample(4, 64, 4, 1, 4, 2, 1, 4),
    ):
        assert pipette_memory.counted(asdict(it)) == pytest.approx(measured_peak(it), rel=0.15)


def test_one_random_cluster_of_the_simulation() -> None:
    """One of the twenty: AMP's choice takes longer, and its prediction is further off."""
    found = pipette._simulated(0, 1)
    assert found["simulated, Pipette"]["speed"] > 1.05
    assert found["simulated, Pipette"]["error"] < 0.5 * found["simulated, AMP"]["error"]
    assert found["simulated, AMP"]["speed"] == 1
