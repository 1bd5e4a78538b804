"""Layouts and placements for links that differ (arXiv 2405.18093).

Three parts. Twenty random clusters of 16 nodes a seed: the chosen layout's step by event simulation
(labelled simulated), beside the choices of AMP and of a plain grid. Three random clusters of six nodes a
seed: the same over emulated links, on real processes that sleep. And peak memory of small layouts that were
executed: a network trained on up to 16 devices, tested on 32 and 64."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shunter.cluster.device import DeviceKind, Rates
from shunter.cluster.matrix import from_matrices
from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.papers.pipette_memory import estimated
from shunter.plan.pipette import (
    Choice,
    Nodes,
    Objective,
    amp_latency,
    choices,
    need_layouts,
)
from shunter.plan.placement import anneal
from shunter.plan.transformer import Shape, device_bytes
from shunter.plan.truth import passed_on, sent_by_stage, simulated_step

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
CLUSTERS, STEPS, BATCH, CLOSEST = 20, 1500, 512, 5
GPT = Shape(layers=48, hidden=4096, heads=32, sequence=2048, vocabulary=51200)
SMALL = Shape(layers=12, hidden=96, heads=4, sequence=512, vocabulary=512)
EMULATED, SIX, SMALL_BATCH = 3, 6, 24
DEVICE = DeviceKind(memory=1e9, memory_bandwidth=1e9, flops={"fp32": Rates(peak=1e9)})


@dataclass(frozen=True)
class Chosen:
    """What a method takes: a layout, its placement, what the method predicts of a step, in seconds."""

    choice: Choice
    grid: Sequence[int]
    told: float


def _nodes(seed: int, count: int, mean: float, devices: int, memory: float, slow: int) -> Nodes:
    """Links log-normal around `mean` bytes a second, each direction its own; `slow` nodes at 0.3 of it."""
    draw = random.Random(f"pipette {seed}")
    factor = [math.exp(draw.gauss(0, 0.35)) for _ in range(count)]
    for node in draw.sample(range(count), slow):
        factor[node] *= 0.3
    rates = [
        [
            30 * mean if a == b else mean * math.exp(draw.gauss(0, 0.25)) * min(factor[a], factor[b])
            for b in range(count)
        ]
        for a in range(count)
    ]
    return Nodes(
        rates, [[5e-6 if a == b else 1e-5 for b in range(count)] for a in range(count)], devices, memory
    )


def _compute(pp: int, tp: int, rows: int) -> float:
    """C of GPT on devices that reach up to 150 TFLOP/s: small micro-batches and narrow slices less
    (assumed)."""
    tokens = rows * GPT.sequence
    work = 72 * tokens * GPT.layers / pp * GPT.hidden**2 * (1 + GPT.sequence / (6 * GPT.hidden))
    rate = 150e12 * rows / (rows + 0.3) * (1 - 0.05 * math.log2(tp))
    sent = 12 * GPT.layers / pp * 2 * (tp - 1) / tp * tokens * GPT.hidden / 200e9
    return work / tp / rate + sent


def _memory(choice: Choice) -> float:
    return device_bytes(
        GPT,
        tensor=choice.tp,
        pipeline=choice.pp,
        rows=choice.rows,
        chunks=1,
        microbatches=choice.microbatches,
    )


def choose(shape: Shape, nodes: Nodes, sound: Sequence[Choice], seed: int, steps: int) -> dict[str, Chosen]:
    """Each method's choice among the same layouts: AMP's formula, Pipette's with a plain grid, and with
    placement; the last also with the event simulation deciding among its five best."""
    plain = tuple(range(nodes.count))
    amp = min(sound, key=lambda choice: amp_latency(shape, nodes, choice))
    found = {"AMP": Chosen(amp, plain, amp_latency(shape, nodes, amp))}
    ranked: list[Chosen] = []
    for choice in sound:
        objective = Objective(shape, nodes, choice)
        placed = anneal(objective, nodes.count, seed=seed, steps=steps)
        ranked.append(Chosen(choice, placed.grid, objective.latency(placed.grid).total))
    flat = [Chosen(choice, plain, Objective(shape, nodes, choice).latency(plain).total) for choice in sound]
    ranked.sort(key=lambda it: it.told)
    found["plain grid"] = min(flat, key=lambda it: it.told)
    found["Pipette"] = ranked[0]
    found["Pipette, simulated"] = min(
        ranked[:CLOSEST], key=lambda it: simulated_step(shape, nodes, it.choice, it.grid)
    )
    return found


def _simulated(seed: int, clusters: int) -> dict[str, dict[str, float]]:
    """Medians over random clusters: step of AMP's choice over each method's, and errors over all "
    "layouts."""
    speed: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {"AMP": [], "Pipette": []}
    plain = tuple(range(16))
    for number in range(clusters):
        nodes = _nodes(1000 * seed + number, 16, 10e9, 8, 28e9, 3)
        sound = need_layouts(list(choices(GPT, nodes, BATCH, _compute, _memory)))
        found = choose(GPT, nodes, sound, seed, STEPS)
        steps = {name: simulated_step(GPT, nodes, it.choice, it.grid) for name, it in found.items()}
        for name, step in steps.items():
            speed.setdefault(name, []).append(steps["AMP"] / step)
        for choice in sound[::4]:  # every fourth layout is enough for a mean
            truth = simulated_step(GPT, nodes, choice, plain)
            errors["AMP"].append(abs(amp_latency(GPT, nodes, choice) / truth - 1))
            errors["Pipette"].append(abs(Objective(GPT, nodes, choice).latency(plain).total / truth - 1))
    told: dict[str, dict[str, float]] = {}
    for name, values in speed.items():
        told[f"simulated, {name}"] = {"speed": statistics.median(values), "least": min(values)}
    for name, values in errors.items():
        told[f"simulated, {name}"]["error"] = statistics.mean(values)
    return told


def _six(seed: int, number: int) -> Nodes:
    return _nodes(7000 + 10 * seed + number, SIX, 20e6, 1, 1e12, 1)


@cache
def _emulated_choices(seed: int, number: int) -> dict[str, Chosen]:
    nodes = _six(seed, number)

    def fits(choice: Choice) -> float:  # a model that one node does not hold
        return 1e9 if choice.pp > 1 else 1e13

    found = choices(SMALL, nodes, SMALL_BATCH, lambda pp, tp, rows: 0.06 * rows / pp, fits)
    return choose(SMALL, nodes, need_layouts(list(found)), seed, 4000)


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    arms: dict[str, Sequence[str]] = {}
    for number in range(1 if short else EMULATED):
        nodes = _six(seed, number)
        cases = {name: _case(it) for name, it in _emulated_choices(seed, number).items()}
        described = from_matrices(f"six nodes {number}", DEVICE, nodes.bandwidth, nodes.latency)
        cluster = described.model_dump(exclude_defaults=True)
        arms[f"emulated {number}"] = [
            f"jobs.emulation.cluster={json.dumps(cluster)}",
            f"jobs.emulation.cases={json.dumps(cases)}",
            f"jobs.emulation.repeats={1 if short else 5}",
            f"jobs.emulation.within={0 if short else 0.01}",
        ]
    few = ["jobs.train.count=24", "jobs.test.count=4", "jobs.test.devices=[16]"]
    arms["memory"] = few if short else []
    return arms


def _case(it: Chosen) -> dict[str, Any]:
    choice = it.choice
    return {
        "grid": list(it.grid), "pp": choice.pp, "microbatches": choice.microbatches,
        "forward": [choice.compute / 3] * choice.pp, "backward": [2 * choice.compute / 3] * choice.pp,
        "message": passed_on(SMALL, choice), "gradients": sent_by_stage(SMALL, choice),
    }  # fmt: skip


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    seed = next(iter(arms["memory"].values())).manifest.what["seed"]
    emulated = [name for name in arms if name.startswith("emulated")]
    found = _simulated(seed, CLUSTERS if len(emulated) == EMULATED else 1)
    steps: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for number, name in enumerate(emulated):
        told = json.loads((arms[name]["emulation"].path / "emulated.json").read_text(encoding="utf-8"))
        for method, it in _emulated_choices(seed, number).items():
            step = min(told[method])  # other work on the machine only adds
            steps.setdefault(method, []).append(step)
            errors.setdefault(method, []).append(abs(it.told / step - 1))
    for method, values in steps.items():
        found[f"emulated, {method}"] = {
            "step": math.exp(statistics.fmean(map(math.log, values))),
            "step_error": statistics.mean(errors[method]),
        }
    return {**found, **estimated(arms["memory"], seed)}


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "simulated: truth is the event simulation of 1F1B with each pair's link and the rings after it, "
        "not a "
        "measurement. The time of a micro-batch on a stage is assumed, the same for all methods.",
        "emulated: six processes of this machine that sleep as devices and links would; geometric mean "
        "over three clusters of the least of five steps, or of as many as make the two least agree within "
        "1 %, 20 at most.",
        "error: of the formula against that truth, over layouts on a plain grid; on emulated clusters, "
        "of the "
        "chosen layout.",
        "analytic: a published formula for half precision, doubled, with 16 bytes a weight. counted: each "
        "tensor of this very program, as `shunter.plan.memory` counts those of a decoder. network on the "
        "count: learns what is measured over what is counted.",
        "The simulated truth shares with the formula how pipelines of a node share its link, and the ring.",
        "memory: layouts of small models, executed stage by stage in one process; all-reduce buffers of "
        "tensor "
        "parallelism are not in it.",
    ]


EXPERIMENT = Experiment(
    slug="pipette",
    recipe=RECIPES / "emulation.yaml",
    recipes={"memory": RECIPES / "memory.yaml"},
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "speed": "step of AMP's choice / step, median of 20 clusters, simulated",
        "least": "the same, of the worst cluster",
        "error": "relative error of the predicted step, mean, against the simulation",
        "step": "s a step, emulated, the least of five or more",
        "step_error": "relative error of the predicted step against emulated ones",
        "memory_error": "relative error of peak bytes on 32 and 64 devices, mean",
    },
    notes=_notes,
)
