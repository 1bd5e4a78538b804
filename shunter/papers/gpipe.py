"""Micro-batches through a pipeline with recomputation (arXiv 1811.06965).

Four parts: the simulated idle share of four ranks against the formula; the step time of two real processes
whose stages sleep, by the number of micro-batches that a mini-batch is cut into; the bytes that a real
Transformer's stages hold for backwards, with and without recomputation; and its loss curve, against that of
the unsplit model.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.record import events
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
COUNTS = (1, 2, 4, 8, 16)  # micro-batches of one mini-batch
WORK = 0.8  # seconds that a rank works on a mini-batch: a third forward, two thirds backward
RECORDED = 5  # the step whose bytes are measured


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=7", "jobs.base.train.warmup=6"] if short else []
    over = "jobs.base.how.parallel"
    piped = [f"{over}={{pp: 2, schedule: gpipe, microbatches: 8, timeline: {RECORDED}}}"]
    arms = {
        "unsplit": quick,
        "pipeline": [*quick, *piped],
        "pipeline, recomputed": [*quick, *piped, f"{over}.recompute=true"],
    }
    return {**arms, **{f"padded, M={count}": _padded(count, short) for count in COUNTS}}


def _padded(count: int, short: bool) -> list[str]:
    third = (WORK / 4 if short else WORK) / 3 / count
    pads = {name: f"{third:.6f}" for name in ("forward", "input_grad", "weight_grad")}
    changes = {"schedule": "gpipe", "microbatches": count, **pads, "repeats": 1 if short else 5}
    return [f"jobs.rehearsal.{key}={value}" for key, value in changes.items()]


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {}
    losses = {name: _losses(arm) for name, arm in arms.items() if "base" in arm}
    for name, values in losses.items():
        gap = max(abs(a - b) for a, b in zip(values, losses["unsplit"], strict=True))
        found[name] = {"loss": values[-1], "gap": gap}
        if name != "unsplit":
            first, last = _held(arms[name])
            found[name] = {**found[name], "held": first, "held_last": last}
    for name, arm in arms.items():
        if "rehearsal" in arm:
            found[name] = _rehearsed(arm)
    base = found["padded, M=1"]["step"]
    for count in COUNTS:
        name = f"padded, M={count}"
        speedup = base / found[name]["step"]
        formula = 2 * count / (count + 1)  # (K M) / (M + K - 1) for K = 2, over its value 1 at M = 1
        found[name] = {**found[name], "speedup": speedup, "formula": formula, "share": speedup / formula}
        found[f"formula, K=2, M={count}"] = {"idle": 1 / (count + 1), "speedup": formula}
    for count in (4, 8, 16, 32):
        order = schedule("gpipe").build(4, count)
        even = Costs.even(order.placement)
        found[f"simulated, K=4, M={count}"] = {"bubble": simulate(assemble(order), even).idle_over_ideal}
        found[f"formula, K=4, M={count}"] = {"bubble": 3 / count}
    return found


def _losses(arm: Arm) -> list[float]:
    ledger = events.read(arm["base"].path / "log" / "ledger.jsonl")
    steps = {event["step"]: float(event["loss"]) for event in ledger if event["event"] == "step"}
    return [steps[step] for step in sorted(steps)]


def _held(arm: Arm) -> list[float]:
    """Of each rank, MB."""
    told = events.read(arm["base"].path / "log" / "events.jsonl")
    (event,) = (event for event in told if event["event"] == "timeline")
    return [held / 1e6 for held in event["saved_bytes"]]


def _rehearsed(arm: Arm) -> Samples:
    found = json.loads((arm["rehearsal"].path / "rehearsal.json").read_text(encoding="utf-8"))
    return {
        "step": statistics.median(found["seconds"]),
        "simulated": float(found["simulated"]),
        "idle": statistics.median(found["idle"]),
        "worked": float(found["worked"]),
    }


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        "padded: two processes whose stages sleep for as long as they would work; the mini-batch takes each "
        f"rank {WORK} s however it is cut.",
        "held: in one step, by autograd; the last rank's head takes its weight's gradient in the forward "
        "and keeps it for each micro-batch that waits.",
    ]
    inside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(inside)}."] if inside else notes


EXPERIMENT = Experiment(
    slug="gpipe",
    recipe=RECIPES / "gpipe.yaml",
    recipes={f"padded, M={count}": RECIPES / "rehearsal.yaml" for count in COUNTS},
    arms=_arms,
    apart=("pipeline", "pipeline, recomputed"),
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "bubble": "idle / ideal time, simulated",
        "step": "s a step, measured",
        "simulated": "s a step, simulated",
        "idle": "share of the ranks' time",
        "speedup": "step at M=1 / step",
        "held": "MB held for backwards, peak, first rank",
        "held_last": "MB, last rank",
        "loss": "nats/token, last step",
        "gap": "nats/token, largest over the steps",
    },
    notes=_notes,
)
