"""Embedding and head on every rank instead of one (arXiv 2411.05288), by simulation and by real steps.

A small model whose vocabulary is most of its work trains on two ranks in four layouts: layers cut evenly with
the head on the last rank (naive), layers cut so that costs are even (redistributed), and both algorithms of
Vocabulary Parallelism. Losses must be the same. The simulation is of the paper's own setting: four ranks,
sixteen micro-batches, a backward of two forwards, a head that costs R forwards of a rank.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.record import events
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import Simulation, simulate
from shunter.schedule.vocabulary import parallel_vocabulary, with_head

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "vocabulary-parallel.yaml"
WARM = 3  # steps at the beginning that are not counted
RANKS, MICROBATCHES = 4, 16
SHARES = (0.25, 1.0, 2.0)


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=5", "jobs.base.train.warmup=1"] if short else []
    layout = "jobs.base.how.parallel"
    return {
        "naive": quick,
        "redistributed": [*quick, f"{layout}.cut=null"],
        "algorithm 1": [*quick, f"{layout}.cut=null", f"{layout}.vocabulary=1"],
        "algorithm 2": [*quick, f"{layout}.cut=null", f"{layout}.vocabulary=2"],
    }


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    rows = {
        name: events.read_metrics(arm["base"].path / "log" / "events.jsonl") for name, arm in arms.items()
    }
    losses = {
        name: {row["step"]: float(row["train/loss"]) for row in found if "train/loss" in row}
        for name, found in rows.items()
    }
    measured: dict[str, dict[str, float]] = {}
    for name, found in rows.items():
        speeds = [float(row["train/tokens_per_second"]) for row in found if "train/tokens_per_second" in row]
        gaps = [abs(loss - losses["naive"][step]) / loss for step, loss in losses[name].items()]
        measured[name] = {"speed": statistics.median(speeds[WARM:]), "loss_gap": max(gaps)}
    return {**measured, **_simulated()}


def _simulated() -> dict[str, dict[str, float]]:
    order = schedule("1f1b").build(RANKS, MICROBATCHES)
    costs = Costs.even(order.placement)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, share: float, run: Simulation) -> None:
        values = found.setdefault(f"simulated {name}", {"held": max(run.peak_activations)})
        values[f"rate_{share:g}"] = 100 / run.elapsed
        values[f"idle_{share:g}"] = run.idle_over_ideal

    for share in SHARES:
        naive = assemble(order)
        note("naive", share, simulate(naive, with_head(costs, naive, share)))
        for algorithm in (1, 2):
            program = assemble(parallel_vocabulary(order, algorithm, costs, share))
            note(f"algorithm {algorithm}", share, simulate(program, with_head(costs, program, share)))
        program = assemble(parallel_vocabulary(order, 2, costs, share, delay=0))
        note("interlaced", share, simulate(program, with_head(costs, program, share)))
    # What the paper allows: the idle share of 1F1B itself, and a little.
    allowed = (RANKS - 1) / MICROBATCHES + 0.02
    found["allowed"] = {f"idle_{share:g}": allowed for share in SHARES}
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "Two ranks of one thread each on one machine; what ranks send each other passes through memory.",
        "redistributed: the layers cut so that both ranks cost the same, head included.",
        "interlaced: all ranks stop for each micro-batch's head together; simulated only, in 1F1B's memory "
        "(the paper's holds half as much more).",
    ]


EXPERIMENT = Experiment(
    slug="vocabulary-parallel",
    recipe=RECIPE,
    arms=_arms,
    apart=("redistributed", "algorithm 1", "algorithm 2"),
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "speed": "tokens/s, two ranks, median of a run's steps",
        "loss_gap": "largest relative difference of a step's loss from the naive layout's",
        **{
            f"rate_{share:g}": f"steps in 100 forwards of a rank, simulated, head = {share:g} forwards"
            for share in SHARES
        },
        **{f"idle_{share:g}": f"idle/ideal, simulated, head = {share:g} forwards" for share in SHARES},
        "held": "micro-batches held at most, simulated",
    },
    notes=_notes,
)
