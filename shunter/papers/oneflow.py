"""Layouts chosen by the bytes that they move (arXiv 2110.15032): the sharding algebra, without the actor
runtime.

A Transformer block and a pair of products, forward, backward and update, in sizes that favour cutting rows,
cutting weights, or neither. For each, the cheapest layouts over four and eight ranks beside rows alone (data
parallelism) and weights alone (tensor parallelism). Over four ranks plans are executed on processes, and what
these hand over is counted; eight ranks are counted without processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "oneflow.yaml"
# Name -> changes of the recipe. Products have rows x tokens rows.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "long block": {"tokens": 64},
    "even block": {"tokens": 32},
    "wide block": {"tokens": 8, "width": 128, "inner": 384},
    "decoder": {"graph": "decoder", "layers": 2, "tokens": 16, "words": 512},
    "long products": {"graph": "products", "tokens": 256, "inner": 256},
    "wide products": {"graph": "products", "width": 256, "inner": 1024, "tokens": 8},
}
CUTS = {"chosen": "anything", "rows": "data", "weights": "tensor"}
RANKS = (4, 8)
EXECUTED = (
    ("chosen", "long block"),
    ("chosen", "even block"),
    ("chosen", "wide block"),
    ("chosen", "wide products"),
    ("rows", "even block"),
    ("weights", "even block"),
)
GRID = "rows x weights, even block, 2 x 2 ranks"
SHORT = ("even block", "wide products")


def _name(cut: str, shape: str, ranks: int) -> str:
    return f"{cut}, {shape}, {ranks} ranks"


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    arms = {}
    for shape, changes in SHAPES.items():
        for cut, word in CUTS.items():
            for ranks in RANKS:
                run = ranks == 4 and (cut, shape) in EXECUTED and (not short or shape in SHORT)
                arms[_name(cut, shape, ranks)] = _changes(
                    {**changes, "devices": f"[{ranks}]", "cut": f"[{word}]", "run": str(run).lower()}
                )
    even = SHAPES["even block"]
    grid = {"devices": "[2, 2]", "cut": "[data, tensor]", "run": str(not short).lower()}
    arms[GRID] = _changes({**even, **grid})
    return arms


def _changes(values: Mapping[str, Any]) -> list[str]:
    return [f"jobs.traffic.{key}={value}" for key, value in values.items()]


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, dict[str, float]] = {"one process": {"gap": 0.0}}
    for name, arm in arms.items():
        told = json.loads((arm["traffic"].path / "traffic.json").read_text(encoding="utf-8"))
        found[name] = {"bytes": told["predicted"] / 1e6, "proven": float(told["exact"])}
        if "bytes" in told:
            found[f"counted: {name}"] = {"bytes": told["bytes"] / 1e6, "gap": told["gap"]}
    for shape in SHAPES:
        for ranks in RANKS:
            chosen, rows, weights = (found[_name(cut, shape, ranks)] for cut in CUTS)
            chosen["of_rows"] = chosen["bytes"] / rows["bytes"]
            chosen["of_weights"] = chosen["bytes"] / weights["bytes"]
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "bytes: what leaves one rank for another in a step, of all ranks together, in float64; each user "
        "of a tensor converts for itself.",
        "counted: on four gloo processes, as they hand it over; eight ranks are counted by overlaps of "
        "ranges in one process.",
        "gap: of every tensor of the step, forward, backward and updated, against one process.",
        "The block is this project's (RMSNorm, rotary positions, SwiGLU), not GPT's own.",
        "The actor runtime is not built yet: pipelining and back-pressure are not measured.",
    ]


EXPERIMENT = Experiment(
    slug="oneflow",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "bytes": "MB moved in a step, all ranks",
        "of_rows": "share of what rows alone move",
        "of_weights": "share of what weights alone move",
        "proven": "1 where no choice is cheaper, by proof",
        "gap": "largest difference from one process, relative",
    },
    notes=_notes,
)
