"""The pipeline papers: what is measured on given artefacts; every claim finds its arms and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.papers import catalogue, gpipe, harness, megatron_interleaved
from shunter.papers.experiment import Experiment
from shunter.recipe.graph import load_recipe
from shunter.record.events import EventLog


def rehearsal(folder: Path, step: float, forward: float) -> Any:
    folder.mkdir(parents=True)
    costs = [["F", 0, forward], ["B", 0, 2 * forward]]
    told = {"seconds": [step] * 3, "simulated": step, "idle": [0.1], "worked": 0.1, "costs": costs}
    (folder / "rehearsal.json").write_text(json.dumps(told))
    return {"rehearsal": SimpleNamespace(path=folder)}


def trained(folder: Path, gap: float, held: list[int]) -> Any:
    (folder / "log").mkdir(parents=True)
    ledger, log = (EventLog(folder / "log" / f"{name}.jsonl", attempt=1) for name in ("ledger", "events"))
    for step in range(3):
        ledger.write("step", step=step, loss=5.0 - step + gap * step)
    log.write("timeline", saved_bytes=held)
    ledger.close()
    log.close()
    return {"base": SimpleNamespace(path=folder)}


def judge(experiment: Experiment, found: Any) -> dict[str, bool]:
    result = harness.conclude(experiment, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == experiment.table.keys()
    return {claim["name"]: claim["holds"] for claim in result["claims"]}


def test_gpipe_on_ideal_measurements(tmp_path: Path) -> None:
    arms = {f"padded, M={m}": rehearsal(tmp_path / str(m), 0.8 * (m + 1) / m, 0.1) for m in gpipe.COUNTS}
    arms["unsplit"] = trained(tmp_path / "unsplit", 0.0, [])
    arms["pipeline"] = trained(tmp_path / "pipeline", 1e-6, [1000, 4000])
    arms["pipeline, recomputed"] = trained(tmp_path / "recomputed", 2e-6, [300, 900])
    found = gpipe.EXPERIMENT.measure(arms)
    assert found["padded, M=8"]["speedup"] == pytest.approx(1.78, abs=0.01)
    assert found["pipeline"]["gap"] == pytest.approx(2e-6)
    assert found["pipeline"]["held"] == 1000 / 1e6
    assert all(judge(gpipe.EXPERIMENT, found).values())
    worse = {
        **found,
        "pipeline, recomputed": {**found["pipeline, recomputed"], "held": 500 / 1e6, "gap": 1e-4},
    }
    broken = [name for name, holds in judge(gpipe.EXPERIMENT, worse).items() if not holds]
    assert broken == ["recomputation holds less on the first rank: at most 1 / 2.5", "with recomputation too"]


def test_interleaving_on_ideal_measurements(tmp_path: Path) -> None:
    module = megatron_interleaved
    arms = {}
    for m in module.COUNTS:
        arms[module._plain(m)] = rehearsal(tmp_path / f"p{m}", 3.0 * (m + 1), 1.0)
        arms[module._double(m)] = rehearsal(tmp_path / f"d{m}", 3.0 * (m + 0.5), 1.0)
    for rows in module.SIZES:
        forward = module.FIXED + module.EACH * rows
        arms[module._sized(rows)] = rehearsal(tmp_path / f"b{rows}", 3 * forward * (16 / rows + 1), forward)
    found = module.EXPERIMENT.measure(arms)
    assert found[module._double(4)]["gain"] == pytest.approx(0.1)
    assert found[module.CHOSEN] == found[module.FASTEST]
    assert found[module.CHOSEN]["rows"] == 4
    assert all(judge(module.EXPERIMENT, found).values())


def test_the_latency_that_cancels_the_gain() -> None:
    even = megatron_interleaved.break_even(4)
    assert megatron_interleaved.elapsed(4, even - 0.01) < megatron_interleaved.elapsed(1, even - 0.01)
    assert megatron_interleaved.elapsed(4, even + 0.01) > megatron_interleaved.elapsed(1, even + 0.01)
    assert megatron_interleaved.break_even(4, blocking=True) < even


@pytest.mark.parametrize(
    "experiment", [gpipe.EXPERIMENT, megatron_interleaved.EXPERIMENT], ids=lambda e: e.slug
)
def test_every_arm_is_a_recipe_that_can_run(experiment: Experiment) -> None:
    from shunter.jobs.registry import KINDS

    for short in (False, True):
        for arm, overrides in experiment.arms(0, short).items():
            recipe = experiment.recipes.get(arm, experiment.recipe)
            graph = load_recipe(recipe, ["seed=0", *overrides], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, recipe.parent)


def test_no_must_have_of_either_is_without_its_test() -> None:
    for slug in ("megatron-interleaved", "gpipe"):
        assert not catalogue.find(slug).lacks


@pytest.mark.long
@pytest.mark.parametrize("slug", ["gpipe", "megatron-interleaved"])
def test_in_short(slug: str, tmp_path: Path) -> None:
    """The machinery with real processes; whether the claims hold is measured by the full form."""
    result = harness.reproduce(slug, seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    assert all(claim["holds"] for claim in result["claims"] if claim["metric"] == "bubble")
