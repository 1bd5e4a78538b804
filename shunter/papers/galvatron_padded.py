"""Layouts over four and six ranks, whose actions are padded by sleep: this machine has fewer cores than that.

A small decoder is trained for real, and every action of a stage takes at least the seconds that the cost
model gives it on a device whose layer takes FORWARD a row. What is held to account is what the event
simulation makes of them: the order of work, waiting, unequal stages, and messages, which are real. How long
a layer takes is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from shunter.layout.grid import Grid

ROWS, LENGTH, LAYERS, DIM = 24, 64, 8, 64
FORWARD = 3e-3  # seconds of one row's forward in one layer; several times what it really takes here
STEPS, WARM = 8, 3
# Name -> degrees, schedule, stages a rank, micro-batches.
PADDED: Mapping[str, tuple[Mapping[str, int], str, int, int]] = {
    "four: pp 4, 4 parts": ({"pp": 4}, "1f1b", 1, 4),
    "four: pp 4, 12 parts": ({"pp": 4}, "1f1b", 1, 12),
    "four: pp 4, halves, 8 parts": ({"pp": 4}, "zb1p", 1, 8),
    "four: pp 4, interleaved, 8 parts": ({"pp": 4}, "interleaved-1f1b", 2, 8),
    "four: pp 2, dp 2, 3 parts": ({"pp": 2, "dp": 2}, "1f1b", 1, 3),
    "four: pp 2, dp 2, 12 parts": ({"pp": 2, "dp": 2}, "1f1b", 1, 12),
    "four: pp 2, tp 2, 4 parts": ({"pp": 2, "tp": 2}, "1f1b", 1, 4),
    "four: fsdp 4, 2 parts": ({"fsdp": 4}, "1f1b", 1, 2),
    "six: pp 6, 6 parts": ({"pp": 6}, "1f1b", 1, 6),
    "six: pp 6, 24 parts": ({"pp": 6}, "1f1b", 1, 24),
    "six: pp 3, dp 2, 3 parts": ({"pp": 3, "dp": 2}, "1f1b", 1, 3),
    "six: pp 3, dp 2, 12 parts": ({"pp": 3, "dp": 2}, "1f1b", 1, 12),
    "six: pp 2, dp 3, 4 parts": ({"pp": 2, "dp": 3}, "1f1b", 1, 4),
    "six: dp 6, 1 part": ({"dp": 6}, "1f1b", 1, 1),
}
ACTIONS = {"1f1b": "FB", "interleaved-1f1b": "FB", "zb1p": "FIW"}


def arms(short: bool) -> Mapping[str, Sequence[str]]:
    """Changes to the recipe of `galvatron`, by name."""
    steps = 5 if short else STEPS
    model = {
        "dim": DIM, "num_layers": LAYERS, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "ffn_dim": 172,
        "tied": True,
    }  # fmt: skip
    same = [
        f"jobs.base.model={json.dumps(model)}", f"jobs.base.train.batch_rows={ROWS}",
        f"jobs.base.train.steps={steps}", "jobs.base.train.warmup=1",
    ]  # fmt: skip
    return {name: [*same, f"jobs.base.how.parallel={json.dumps(parallel(name))}"] for name in PADDED}


def measure(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Predictions beside measured steps. order: the correlation of their ranks; behind: of the layouts of
    four ranks, and of those of six, the step of the one predicted to be fastest over the fastest one's, the
    worse of the two."""
    from shunter.papers.galvatron import spearman

    told = {name: float(predicted(name).seconds) for name in seconds}
    found = {name: {"step": step, "predicted": told[name]} for name, step in seconds.items()}
    behind = []
    for ranks in ("four", "six"):
        mine = [name for name in seconds if name.startswith(ranks)]
        behind.append(seconds[min(mine, key=told.__getitem__)] / min(seconds[name] for name in mine))
    order = spearman([told[name] for name in seconds], list(seconds.values()))
    found["the padded plan"] = {"order": order, "behind": max(behind)}
    found["the fastest padded"] = {"order": 0.0, "behind": 1.0}
    return found


def parallel(name: str) -> dict[str, Any]:
    """A layout as a recipe has it."""
    degrees, schedule, chunks, parts = PADDED[name]
    found = predicted(name)
    each = {
        "F": found.forward,
        "B": found.backward,
        "I": [b - w for b, w in zip(found.backward, found.weights, strict=True)],
        "W": found.weights,
    }
    written: dict[str, Any] = {**degrees, "microbatches": parts}
    if "pp" in degrees:
        written |= {"schedule": schedule, "cut": list(found.bounds[1:-1])}
    if chunks > 1:
        written["chunks"] = chunks
    return {**written, "at_least": {action: list(each[action]) for action in ACTIONS[schedule]}}


@cache
def predicted(name: str) -> Any:
    """What the planner's event simulation says of a layout (`shunter.plan.score.Prediction`)."""
    from shunter.plan.choices import Choices
    from shunter.plan.score import predict

    degrees, schedule, chunks, parts = PADDED[name]
    grid = Grid(**degrees)
    rows = ROWS // (grid.dp * grid.fsdp) // parts
    return predict(_question(), Choices.one(grid, rows, schedule, chunks, "none"))


@cache
def _question() -> Any:
    from shunter.plan.choices import Choices
    from shunter.plan.estimate import costs

    slow = _asked(1e9)
    took = costs(slow, Choices.one(Grid(), 1), slow.fabric.device).dense.forward.compute[0]
    return _asked(1e9 * float(took) / FORWARD)


def _asked(rate: float) -> Any:
    """rate: FLOP/s of a device for which products are all that takes time. Links: about what gloo has between
    processes of one machine."""
    from shunter.cluster.cluster import Cluster
    from shunter.cluster.description import Description
    from shunter.models.spec import DecoderSpec
    from shunter.plan.choices import Question
    from shunter.plan.fabric import Fabric
    from shunter.plan.practice import Coefficients, practice

    flops = {"fp32": {"peak": rate, "achieved": {"tiny": rate, "attention": rate}}}
    described = {
        "name": "padded",
        "devices": {"rank": {"type": "cpu", "memory": 1e12, "memory_bandwidth": 1e15, "flops": flops}},
        "links": {"gloo": {"latency": 3e-4, "bandwidth": 1e9}},
        "nodes": {"here": {"device": "rank", "devices": 12, "inside": "gloo"}},
    }  # fmt: skip
    spec = DecoderSpec(
        vocab_size=1024, dim=DIM, num_layers=LAYERS, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=172,
        max_positions=LENGTH, tied=True,
    )  # fmt: skip
    fabric = Fabric.of(Cluster.of(Description.model_validate(described)))
    known = Coefficients().but("counted", kernel=1e-9)
    return Question(spec, fabric, ROWS, LENGTH, practice("shunter-fp32"), known)
