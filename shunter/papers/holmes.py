"""One model over clusters with different NICs (arXiv 2312.03549).

On four processes that sleep as devices and links would: two clusters of two nodes, InfiniBand and RoCE
inside, Ethernet between. Data groups within a cluster against data groups across, against everything by
Ethernet, with layers by speed where one cluster is slower, and with reductions that overlap the backward;
from few bytes between stages to so many that the order turns round. And 8 to 96 devices by event
simulation, labelled simulated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.plan import holmes
from shunter.plan.pipette import Choice, Nodes
from shunter.plan.transformer import Shape
from shunter.plan.truth import simulated_step

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
# A thousandth of real rates: 20 GB/s, 16 GB/s and 3 GB/s shrink to what messages of some 10 kB show.
LINKS = {"InfiniBand": 20e6, "RoCE": 16e6, "Ethernet": 3e6}
LAYERS, UNIT, SLOWER = 48, 0.8e-3, 197 / 160  # seconds of a layer's forward; the paper's speeds
GRADIENTS, COUNT, MANY = 960e3, 4, 12  # bytes of a stage, micro-batches, where layers are cut by speed
MESSAGES = (10e3, 40e3, 160e3, 480e3, 960e3)  # bytes between two stages
TYPICAL = MESSAGES[1]
SIZES = (8, 16, 32, 64, 96)  # devices, simulated
GPT_3_6B = Shape(layers=30, hidden=3072, heads=32, sequence=2048, vocabulary=51200)


def _cluster(links: Mapping[str, float]) -> Description:
    tree: dict[str, Any] = {
        "name": "two clusters",
        "devices": {"device": {"memory": 1e9, "memory_bandwidth": 1e9, "flops": {"fp32": {"peak": 1e9}}}},
        "links": {name: {"latency": 2e-4, "bandwidth": rate, "type": name} for name, rate in links.items()},
        "nodes": {
            "ib": {"count": 2, "device": "device", "devices": 1, "between": "InfiniBand"},
            "roce": {"count": 2, "device": "device", "devices": 1, "between": "RoCE"},
        },
        "between": "Ethernet",
    }
    return Description.model_validate(tree)


def _case(
    grid: Sequence[int], layers: Sequence[int], message: float, slower: float, count: int = COUNT, **more: Any
) -> dict[str, Any]:
    speed = (1.0, slower)
    forward = [layer * UNIT * factor for layer, factor in zip(layers, speed, strict=True)]
    return {
        "grid": list(grid), "pp": 2, "microbatches": count, "forward": forward,
        "backward": [2 * each for each in forward], "message": message, "gradients": [GRADIENTS] * 2, **more,
    }  # fmt: skip


def _cases() -> dict[str, dict[str, Any]]:
    it = Cluster.of(_cluster(LINKS))
    aware, blind = holmes.arrange(it, 2, 2).grid(), holmes.blind(it, 2, 2).grid()
    even = [LAYERS // 2] * 2
    speeds = {"InfiniBand": 197.0, "RoCE": 160.0}
    plain, paper = (holmes.partition(LAYERS, list(speeds), speeds, alpha) for alpha in (1.0, holmes.ALPHA))
    cases = {}
    for message in MESSAGES:
        cases[f"blind {message:g}"] = _case(blind, even, message, 1.0)
        cases[f"aware {message:g}"] = _case(aware, even, message, 1.0)
    cases["uneven, even cut"] = _case(aware, even, MESSAGES[0], SLOWER, MANY)
    cases["uneven, by speed"] = _case(aware, plain, MESSAGES[0], SLOWER, MANY)
    cases["uneven, by speed, alpha 1.05"] = _case(aware, paper, MESSAGES[0], SLOWER, MANY)
    cases["overlapped"] = _case(aware, even, TYPICAL, 1.0, buckets=8, overlap=True)
    return cases


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    repeats = f"jobs.emulation.repeats={1 if short else 5}"
    cases = _cases()
    slow = {"ethernet": cases[f"aware {TYPICAL:g}"]}
    given, ethernet = (
        json.dumps(_cluster(links).model_dump(exclude_defaults=True))
        for links in (LINKS, dict.fromkeys(LINKS, LINKS["Ethernet"]))
    )
    return {
        "two NICs": [
            f"jobs.emulation.cluster={given}",
            f"jobs.emulation.cases={json.dumps(cases)}",
            repeats,
        ],
        "all by Ethernet": [
            f"jobs.emulation.cluster={ethernet}",
            f"jobs.emulation.cases={json.dumps(slow)}",
            repeats,
        ],
    }


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    told: dict[str, list[float]] = {}
    for arm in arms.values():
        told |= json.loads((arm["emulation"].path / "emulated.json").read_text(encoding="utf-8"))
    step = {name: min(values) for name, values in told.items()}  # other work on the machine only adds
    found: dict[str, dict[str, float]] = {
        "type-blind": {"step": step[f"blind {TYPICAL:g}"]},
        "everything by Ethernet": {"step": step["ethernet"]},
        "Holmes": {"step": step[f"aware {TYPICAL:g}"]},
        "Holmes, overlapped": {"step": step["overlapped"]},
        "slower cluster, even cut": {"step": step["uneven, even cut"]},
        "slower cluster, by speed": {"step": step["uneven, by speed"]},
        "slower cluster, by speed, alpha 1.05": {"step": step["uneven, by speed, alpha 1.05"]},
    }
    for message in MESSAGES:
        share = message * COUNT / GRADIENTS
        name = f"messages {share:g} of gradients"
        found[name] = {"gain": step[f"blind {message:g}"] / step[f"aware {message:g}"]}
    for devices in SIZES:
        blind, aware = _simulated(devices)
        found[f"simulated, {devices} devices"] = {"gain": blind / aware}
    return found


def _simulated(devices: int) -> tuple[float, float]:
    """Steps with data groups across clusters and within, of a GPT of 3.6 billion weights: nodes of eight
    devices (smaller ones below 32), half of them InfiniBand, half RoCE, tensor parallel inside, two
    stages."""
    each = min(8, devices // 4)
    count = devices // each
    rows = count // 2
    kind = ["InfiniBand"] * rows + ["RoCE"] * rows
    within = {"InfiniBand": 25e9, "RoCE": 20e9}
    rates = [
        [250e9 if a == b else within[kind[a]] if kind[a] == kind[b] else 3e9 for b in range(count)]
        for a in range(count)
    ]
    nodes = Nodes(rates, [[5e-6 if a == b else 2e-5 for b in range(count)] for a in range(count)], each)
    hidden = GPT_3_6B.hidden
    work = 72 * 2048 * GPT_3_6B.layers / 2 * hidden**2 * (1 + 2048 / (6 * hidden))
    choice = Choice(2, each, rows, 1, COUNT, work / each / 150e12)
    aware = [node for row in range(rows) for node in (row, rows + row)]
    # Neighbours in one cluster become a pipeline, so that a stage's replicas lie in both.
    blind = list(range(count))
    return simulated_step(GPT_3_6B, nodes, choice, blind), simulated_step(GPT_3_6B, nodes, choice, aware)


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "emulated: processes of this machine that sleep as devices and links would; a thousandth of real "
        "rates.",
        "gain: step of the type-blind layout over Holmes's. Below 1 the type-blind one is faster: so "
        "much passes "
        "between stages that pipelines are better kept within a cluster.",
        "simulated: event simulation, not a measurement; 8 and 16 devices are four smaller nodes.",
        "NICs are not switched here: there is no RDMA on this machine. What is measured is the layout.",
    ]


EXPERIMENT = Experiment(
    slug="holmes",
    recipe=RECIPES / "emulation.yaml",
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "step": "s a step, emulated, the least of five",
        "gain": "step of type-blind / step of Holmes",
    },
    notes=_notes,
)
