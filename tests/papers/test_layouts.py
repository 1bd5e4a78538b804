"""The papers on layouts: what is measured on given logs; every claim finds its arms and metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.papers import (
    catalogue,
    harness,
    megatron_tensor_parallel,
    moe_parallel_folding,
    torchtitan,
)
from shunter.papers.experiment import Experiment
from shunter.recipe.graph import load_recipe
from shunter.record.events import EventLog

EXPERIMENTS = [
    megatron_tensor_parallel.EXPERIMENT,
    torchtitan.EXPERIMENT,
    moe_parallel_folding.EXPERIMENT,
]


def trained(
    folder: Path, gap: float = 0.0, ranks: list[dict[str, Any]] | None = None, blocked: float = 1.0
) -> Any:
    (folder / "log").mkdir(parents=True)
    ledger, log = (EventLog(folder / "log" / f"{name}.jsonl", attempt=1) for name in ("ledger", "events"))
    for step in range(3):
        facts = {"rows": f"{step}", "position": [step, step + 1], "grad_norm": 1.0 + gap}
        ledger.write("step", step=step, loss=5.0 - step + gap * step, **facts)
        log.write("checkpoint", step=step, blocked=blocked if step < 2 else 1.0, staging_bytes=0)
    if ranks is not None:
        log.write("traffic", step=2, ranks=ranks)
    ledger.close()
    log.close()
    return {"base": SimpleNamespace(path=folder)}


def judge(experiment: Experiment, found: Any) -> list[str]:
    """The claims that do not hold."""
    result = harness.conclude(experiment, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == experiment.table.keys()
    return [claim["name"] for claim in result["claims"] if not claim["holds"]]


def test_tensor_parallelism_on_ideal_measurements(tmp_path: Path) -> None:
    module = megatron_tensor_parallel
    tokens = module.ROWS * module.LENGTH

    def sent(layers: int) -> list[dict[str, Any]]:
        cut, norms = module.parameters(layers)
        weights = 4 * (cut + module.DIM) // 2 + 4 * norms
        calls = 4 * layers + 7
        told = {"sent": {"all-reduce": [calls, calls * 4 * tokens * module.DIM]}}
        head = {"head": {"all-reduce": [2, 12 * tokens]}}
        return [{**told, **head, "weights": weights, "optimizer": 2 * weights}] * 2

    arms = {
        module.ONE: trained(tmp_path / "one"),
        module.HALVES: trained(tmp_path / "halves", 1e-7),
        module.PLAIN: trained(tmp_path / "plain", 1e-7, sent(4)),
        module.SPREAD: trained(tmp_path / "spread", 1e-7, sent(4)),
        module.FEW: trained(tmp_path / "few", 1e-7, sent(2)),
    }
    found = module.EXPERIMENT.measure(arms)
    assert not judge(module.EXPERIMENT, found)
    worse = {**found, module.PLAIN: {**found[module.PLAIN], "gap": 1e-3, "calls": 6.0}}
    assert [name.split(":")[0] for name in judge(module.EXPERIMENT, worse)] == [
        "two processes",
        "a layer has four all-reduces in a step, two forward and two backward",
    ]


def test_composition_on_ideal_measurements(tmp_path: Path) -> None:
    experiment = torchtitan.EXPERIMENT
    arms = {
        name: trained(
            tmp_path / str(number), 1e-6 * bool(number), blocked=0.2 if name == torchtitan.BESIDE else 1.0
        )
        for number, name in enumerate(experiment.arms(0, False))
    }
    found = experiment.measure(arms)
    assert found[torchtitan.BESIDE]["blocked"] == 200.0  # ms; the save after the last step is left out
    assert not judge(experiment, found)
    worse = {**found, torchtitan.RESUMED: {**found[torchtitan.RESUMED], "gap": 1e-3, "rows": 2.0}}
    assert len(judge(experiment, worse)) == 2
    waited = {**found, torchtitan.BESIDE: {**found[torchtitan.BESIDE], "blocked": 400.0}}
    assert [name[:6] for name in judge(experiment, waited)] == ["a save"]


def test_folding_on_ideal_measurements(tmp_path: Path) -> None:
    experiment = moe_parallel_folding.EXPERIMENT
    arms = {
        name: trained(tmp_path / str(number), 1e-6 * bool(number))
        for number, name in enumerate(experiment.arms(0, False))
    }
    found = experiment.measure(arms)
    assert not judge(experiment, found)
    worse = {**found, "folded": {**found["folded"], "between": 1.0}}
    assert judge(experiment, worse) == ["of which nothing goes between nodes of eight"]


def test_modelled_efficiency_falls_with_ranks_and_waits() -> None:
    case = {"flops": 1e12, "rate": 1e13, "moved": 1e7, "bandwidth": 1e10}
    shares = [
        megatron_tensor_parallel.efficiency(ranks, **case, wait=wait)
        for ranks, wait in ((1, 1e-5), (2, 0.0), (2, 1e-5), (4, 1e-5))
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[:2] == [1.0, pytest.approx(0.05 / (0.05 + 4 * 2 * 0.5e-3))]


def test_the_recipe_has_the_module_s_sizes() -> None:
    from shunter.jobs.registry import KINDS
    from shunter.models.spec import DecoderSpec

    module = megatron_tensor_parallel
    graph = load_recipe(module.EXPERIMENT.recipe, [], KINDS)
    shape = graph.nodes["base"].config.model_dump()["model"]
    spec = DecoderSpec(**shape, vocab_size=module.VOCABULARY)
    assert sum(module.parameters(module.LAYERS)) == spec.num_parameters


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.slug)
def test_every_arm_is_a_recipe_that_can_run(experiment: Experiment) -> None:
    from shunter.jobs.registry import KINDS

    for short in (False, True):
        for overrides in experiment.arms(0, short).values():
            graph = load_recipe(experiment.recipe, ["seed=0", *overrides], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, experiment.recipe.parent)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.slug)
def test_tests_that_are_named_exist(experiment: Experiment) -> None:
    lacks = catalogue.find(experiment.slug).lacks
    assert not [lack for lack in lacks if lack.startswith(("test not found", "no docs", "no claim"))]


def test_what_is_not_built_keeps_papers_partial() -> None:
    lacks = catalogue.find("megatron-tensor-parallel").lacks
    assert any("BERT" in lack for lack in lacks)


@pytest.mark.long
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.slug)
def test_in_short(experiment: Experiment, tmp_path: Path) -> None:
    """The machinery with real processes: equality holds already in a few steps."""
    result = harness.reproduce(experiment.slug, seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    assert result["holds"]
