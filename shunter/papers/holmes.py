"""One model over clusters with different NICs (arXiv 2312.03549).

Emulated, on processes that sleep as devices and links would, in four clusters: two InfiniBand and two RoCE
nodes; four and two; two each of three types that have RDMA; and two each of InfiniBand, RoCE and Ethernet
alone. Ethernet between types; each seed draws the links anew. Data groups within a type against data groups
across, against everything by Ethernet, with layers by speed where devices differ, and with reductions that
overlap the backward; from few bytes between stages to so many that the order turns round. Beside each
emulated step stands the event simulation's. And 8 to 96 devices by event simulation alone. Each arm's name
says which it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.papers.holmes_clusters import CLUSTERS, COUNT
from shunter.plan.pipette import Choice, Nodes
from shunter.plan.transformer import Shape
from shunter.plan.truth import simulated_step

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
REPEATS, WITHIN = 3, 0.01
SIZES = (8, 16, 32, 64, 96)  # devices, simulated
GPT_3_6B = Shape(layers=30, hidden=3072, heads=32, sequence=2048, vocabulary=51200)


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    return {
        it.name: [
            f"jobs.emulation.cluster={json.dumps(it.described(seed).model_dump(exclude_defaults=True))}",
            f"jobs.emulation.cases={json.dumps(it.cases())}",
            f"jobs.emulation.speeds={json.dumps(it.relative())}",
            f"jobs.emulation.repeats={1 if short else REPEATS}",
            f"jobs.emulation.within={0 if short else WITHIN}",
        ]
        for it in CLUSTERS
    }


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, dict[str, float]] = {}
    for it in CLUSTERS:
        made = arms[it.name]["emulation"]
        told = json.loads((made.path / "emulated.json").read_text(encoding="utf-8"))
        # Other work on the machine only adds.
        step = {name: min(values) for name, values in told.items()}
        seed = made.manifest.what["seed"]
        simulated = {name: it.simulated(case, seed) for name, case in it.cases().items()}
        for name, case in it.cases().items():
            way, _, share = name.partition(", ")
            if share:
                one, other = f"blind, {share}", f"aware, {share}"
                found[f"emulated {it.name}: {share}"] = {
                    "gain": step[one] / step[other],
                    "sim_gain": simulated[one] / simulated[other],
                }
                continue
            row = found[f"emulated {it.name}: {way}"] = {"step": step[name]}
            overlap = case.get("overlap")  # the simulation reduces after the backward
            if not overlap:
                row["simulated"] = simulated[name]
            if "blind" in step:
                row["gain"] = step["blind"] / step[name]
                row |= {} if overlap else {"sim_gain": simulated["blind"] / simulated[name]}
    for devices in SIZES:
        blind, aware = _simulated(devices)
        found[f"simulated {devices} devices"] = {"sim_gain": blind / aware}
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
        "emulated: processes of this machine that sleep as devices and links would, at a thousandth of real "
        "rates; cases take turns until the two least steps of each are within 1 %, 12 times at most.",
        "simulated: event simulation, not a measurement.",
        "Nodes of one device; InfiniBand, RoCE, Omni-Path, or Ethernet alone; Ethernet between types. Each "
        "seed draws rates anew, by type. Devices differ by type (197, 160, 122), but not on 2 IB 2 RoCE.",
        "blind, aware, all Ethernet, overlapped: even cuts. by speed: aware, with layers by speed. messages: "
        "bytes between two stages in a step over those of a stage's gradients.",
        "Nodes with Ethernet alone reduce by it in any layout: no claim of 1.3 is made where they are.",
        "gain below 1: the type-blind one is faster. So much passes between stages that pipelines are better "
        "kept within a cluster.",
        "simulated 8 and 16 devices are four smaller nodes.",
        "NICs are not switched here: there is no RDMA on this machine. What is measured is the layout.",
    ]


EXPERIMENT = Experiment(
    slug="holmes",
    recipe=RECIPES / "emulation.yaml",
    arms=_arms,
    seeds=(0, 1, 2, 3),
    measure=_measure,
    table={
        "step": f"s a step, emulated, the least of {REPEATS} or more",
        "simulated": "s a step, simulated, of the same case",
        "gain": "step of type-blind / step, emulated",
        "sim_gain": "step of type-blind / step of type-aware, simulated",
    },
    notes=_notes,
)
