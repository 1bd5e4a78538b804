"""Tuning by trials on a machine of three levels of links (arXiv 2312.12705).

Forty Bayesian trials over all 1,804 layouts of the 175B shape that divide, of which nine in ten do not fit,
on a simulator of the machine; against forty random ones and against trying all; twenty searches a seed. They
begin where this project's planner, which knows nothing of the simulator, predicts the best layout, as
`shunter tune` does; and by chance. The paper's observations on the simulator, and two real processes of a
padded pipeline whose time per micro-batch follows (m + p - 1) / m."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.plan import frontier
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Choices, Question
from shunter.plan.estimate import estimate
from shunter.plan.fabric import Fabric
from shunter.plan.importance import importance
from shunter.plan.practice import practice
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.trials import Failed, Method, Point, Space, Trials, search

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "rehearsal.yaml"
COUNTS = (2, 4, 8, 16)  # micro-batches
WORK = 0.09  # seconds of a micro-batch on a rank
SEARCHES, TRIALS = 20, 40
CLOSEST = 30  # layouts that the planner simulates, of those that its formulas find best
WAYS: Mapping[str, Method] = {"from the planner's best": "bayes", "Bayesian": "bayes", "random": "random"}


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    third = (WORK / 3 if short else WORK) / 3
    pads = {name: f"{third:.6f}" for name in ("forward", "input_grad", "weight_grad")}
    return {
        f"padded, m={count}": [
            f"jobs.rehearsal.{key}={value}"
            for key, value in {
                "schedule": "1f1b", "microbatches": count, **pads, "repeats": 1 if short else 5
            }.items()
        ]
        for count in COUNTS
    }  # fmt: skip


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    manifest = next(iter(arms.values()))["rehearsal"].manifest
    short = manifest.what["repeats"] == 1
    found = {**_padded(arms), **_observed()}
    machine = frontier.Machine(files.find("8xmi250x"))
    space, run = frontier.study(frontier.GPT_175B, machine)
    cached = _once(run)
    best = _value(search(space, cached, 100_000, method="random"))
    found["exhaustive"] = {"reached": 1.0, "tflops": best, "points": float(len(list(space.points())))}
    seeds = range(SEARCHES * manifest.what["seed"], SEARCHES * (manifest.what["seed"] + 1))
    trials = 12 if short else TRIALS
    first = planned(space)
    alone = _value(search(space, cached, 1, method="random", start=[first]))
    found["the planner's best"] = {"tflops": alone, "reached": alone / best}
    for name, method in WAYS.items():
        done = [
            search(
                space, cached, trials, seed=each, method=method, start=[first] if "planner" in name else ()
            )
            for each in (seeds[:1] if short else seeds)
        ]
        found[name] = {
            "reached": statistics.median(_value(one) / best for one in done),
            "tflops": statistics.median(map(_value, done)),
            "failures": statistics.mean(one.failures / trials for one in done),
            "late_failures": statistics.mean(_failed(one, trials // 2) for one in done),
        }
        if name == "random":
            found |= _important(space, [trial for one in done for trial in one.done])
    return found


def planned(space: Space) -> Point:
    """The point whose step this project's planner predicts to be fastest a device, of those that it predicts
    to fit. It has the machine as its file describes it, and a program like the paper's."""
    megatron = replace(
        practice("megatron-2021"), fused=True, optimizer=12, offers=False, axes=("pp", "dp", "tp")
    )
    fabrics = {nodes: files.find(f"{nodes}x8xmi250x") for nodes in frontier.KNOBS["nodes"]}
    coefficients = coefficients_of(fabrics[frontier.KNOBS["nodes"][0]])
    rated: list[tuple[float, int, Question, Choices, Point]] = []
    for number, point in enumerate(space.points()):
        it = frontier.Setting.of(point)
        fabric = Fabric.of(fabrics[int(point["nodes"])])
        question = Question(
            preset("gpt-175b"), fabric, it.dp * it.rows * it.accumulation, frontier.GPT_175B.sequence,
            replace(megatron, zero=bool(it.zero)), coefficients,
        )  # fmt: skip
        choice = Choices.one(Grid(pp=it.pp, dp=it.dp, tp=it.tp), it.rows, "1f1b", 1, "layer")
        told = estimate(question, choice)
        if float(told.bytes[0]) <= fabric.memory:
            rated.append(
                (question.flops / float(told.seconds[0]) / it.devices, -number, question, choice, point)
            )
    rated.sort(key=lambda each: each[:2], reverse=True)

    def rate(question: Question, choice: Choices) -> float:
        found = predict(question, choice)
        room = found.fullest <= question.fabric.memory
        return question.flops / found.seconds / question.fabric.world if room else 0.0

    return max(rated[:CLOSEST], key=lambda each: rate(each[2], each[3]))[4]


def _once(run: Callable[[Point], float]) -> Callable[[Point], float]:
    """The same function, which computes a point once."""
    known: dict[tuple[Any, ...], float | Failed] = {}

    def told(point: Point) -> float:
        key = Space.key(point)
        if key not in known:
            try:
                known[key] = run(point)
            except Failed as failure:
                known[key] = failure
        value = known[key]
        if isinstance(value, Failed):
            raise value
        return value

    return told


def _value(found: Trials) -> float:
    return (found.best.value or 0.0) if found.best else 0.0


def _failed(found: Trials, since: int) -> float:
    late = found.done[since:]
    return sum(trial.value is None for trial in late) / max(1, len(late))


def _important(space: Space, trials: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Over random trials, which are not drawn towards what is good; each point once."""
    once = {Space.key(trial.point): trial for trial in trials}
    told = importance(space, list(once.values()), forests=20)
    return {
        f"knob {name}": {"importance": it.share, "from": it.low, "to": it.high} for name, it in told.items()
    }


def _padded(arms: Mapping[str, Arm]) -> dict[str, dict[str, float]]:
    measured = {}
    for count in COUNTS:
        path = arms[f"padded, m={count}"]["rehearsal"].path / "rehearsal.json"
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        measured[count] = statistics.median(seconds) / count
    formula = {count: (count + 1) / count for count in COUNTS}
    found = {
        f"padded, m={count}": {"microbatch": measured[count], "formula": formula[count]} for count in COUNTS
    }
    same = statistics.correlation(list(measured.values()), list(formula.values()))
    return {**found, "no correlation": {"correlation": 0.0}, "padded": {"correlation": same}}


def _observed() -> dict[str, dict[str, float]]:
    """The paper's observations 1 to 4 and its weak and strong scaling, each as one number: 1 where it
    holds."""
    machine = frontier.Machine(files.find("8xmi250x"))

    def at(shape: Any = frontier.GPT_22B, **change: int) -> float:
        base = {"pp": 8, "tp": 4, "rows": 1, "accumulation": 16, "zero": 1, "devices": 128}
        return frontier.throughput(shape, machine, frontier.Setting(**{**base, **change})) / 1e12

    tensor = [at(tp=tp) for tp in (1, 2, 4, 8)]
    batch = [at(accumulation=m) for m in (4, 8, 16, 32, 64)]
    stages = [at(pp=pp) for pp in (2, 4, 8, 16)]
    both = [at(pp=pp, accumulation=8 * pp, devices=32 * pp) for pp in (2, 4, 8)]
    recipe = {"pp": 16, "tp": 4, "rows": 1, "zero": 1}
    small, large = (
        at(frontier.GPT_175B, **recipe, accumulation=640, devices=devices) for devices in (64, 1024)
    )
    strong = at(frontier.GPT_175B, **recipe, accumulation=8000 // 16, devices=1024)
    fixed = at(frontier.GPT_175B, **recipe, accumulation=8000, devices=64)
    return {
        "every observation": {"observed": 1.0},
        "1: tensor parallelism lowers it": {"observed": float(tensor == sorted(tensor, reverse=True))},
        "2: more micro-batches raise it": {"observed": float(batch == sorted(batch))},
        "3: more stages at one batch lower it": {"observed": float(stages == sorted(stages, reverse=True))},
        "4: batch and stages together hold it": {"observed": float(max(both) / min(both) < 1.15)},
        "64 devices": {"scaling": 1.0},
        "weak scaling to 1024 devices": {"scaling": large / small},
        "strong scaling to 1024 devices": {"scaling": strong / fixed},
        "the paper's 175B recipe": {"tflops": large},
    }


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "The machine is a simulator: links of the shipped 8xmi250x, efficiency of products assumed, 1F1B "
        "by events. "
        "TFLOP/s are of the simulator, not of Frontier.",
        "from the planner's best: the first trial is the layout that `shunter.plan` predicts to be fastest; "
        "it has the machine's file and no number of the simulator's.",
        "Observations and scaling follow from the simulator's formulas: they are the same for every seed, "
        "and show that it is sound, not that a machine does so.",
        "failures: share of trials that ran out of memory. Only what does not divide is never tried.",
        "padded: two processes whose stages sleep for as long as they would work.",
        "Importance is by permutation on forests over all random trials, not Shapley values.",
    ]


EXPERIMENT = Experiment(
    slug="frontier",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "reached": "best of 40 trials / best of all, median of 20 searches",
        "tflops": "TFLOP/s of a device, simulated",
        "points": "layouts that can be",
        "failures": "share of trials that failed",
        "late_failures": "the same of the last 20",
        "importance": "share of the variance that goes with the knob",
        "from": "95 % interval, lower end",
        "to": "upper end",
        "microbatch": "s a micro-batch, measured",
        "formula": "(m + p - 1) / m",
        "correlation": "of the two",
        "observed": "1 where it holds on the simulator",
        "scaling": "throughput of a device over that at 64 devices",
    },
    notes=_notes,
)
