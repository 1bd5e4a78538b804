"""Interleaved stages, and rules for the sizes of a layout (arXiv 2104.04473).

Simulated: the idle share against the formula, and the latency of a hop at which the added messages cost as
much as the smaller bubble saves. Measured, on two processes whose stages sleep: 1F1B against two stages a
rank by the number of micro-batches; and whether the micro-batch that rule 3 picks is the fastest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.plan.megatron import rule_three
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs, Links
from shunter.schedule.simulate import simulate

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "rehearsal.yaml"
UNIT = 0.05  # seconds of a rank's forward; its backward takes two
COUNTS = (4, 8, 16)
ROWS = 16  # of one pipeline's share of the batch, for rule 3
SIZES = (1, 2, 4, 8)
FIXED, EACH = 0.008, 0.008  # seconds of a forward, and of each of its rows
RANKS, MICROBATCHES = 4, 8  # of the simulations
FASTEST, CHOSEN = "the fastest micro-batch", "rule 3's micro-batch"


def _plain(count: int) -> str:
    return f"1F1B, m={count}"


def _double(count: int) -> str:
    return f"two stages a rank, m={count}"


def _sized(rows: int) -> str:
    return f"micro-batches of {rows}"


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    unit, repeats = (UNIT / 2, 1) if short else (UNIT, 3)
    arms = {}
    for count in COUNTS:
        arms[_plain(count)] = _changes("1f1b", count, unit, repeats)
        arms[_double(count)] = _changes("interleaved-1f1b", count, unit, repeats)
    for rows in SIZES:
        arms[_sized(rows)] = _changes("1f1b", ROWS // rows, FIXED + EACH * rows, repeats)
    return arms


def _changes(name: str, count: int, unit: float, repeats: int) -> list[str]:
    times = {key: f"{unit:.6f}" for key in ("forward", "input_grad", "weight_grad")}
    changes = {"schedule": name, "microbatches": count, **times, "repeats": repeats}
    return [f"jobs.rehearsal.{key}={value}" for key, value in changes.items()]


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    told = {name: _read(arm) for name, arm in arms.items()}
    found: dict[str, Samples] = {
        name: {
            "step": statistics.median(one["seconds"]),
            "simulated": float(one["simulated"]),
            "worked": float(one["worked"]),
        }
        for name, one in told.items()
    }
    for count in COUNTS:
        plain, double = found[_plain(count)], found[_double(count)]
        found[_double(count)] = {**double, "gain": 1 - double["step"] / plain["step"]}
    steps = {rows: found[_sized(rows)]["step"] for rows in SIZES}
    times = {rows: _profile(told[_sized(rows)]) for rows in SIZES}
    predicted = rule_three(ROWS, 2, times)
    for rows in SIZES:
        found[_sized(rows)] = {**found[_sized(rows)], "predicted": predicted[rows]}
    found[FASTEST] = _of(min(SIZES, key=steps.__getitem__), steps)
    found[CHOSEN] = _of(min(SIZES, key=predicted.__getitem__), steps)
    return {**found, **_simulated()}


def _of(rows: int, steps: Mapping[int, float]) -> Samples:
    return {"step": steps[rows], "rows": float(rows)}


def _read(arm: Arm) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((arm["rehearsal"].path / "rehearsal.json").read_text(encoding="utf-8"))
    return found


def _profile(told: Mapping[str, Any]) -> tuple[float, float]:
    """Median seconds of the first stage's forward and backward, as they were measured."""
    costs = {(op, stage): float(seconds) for op, stage, seconds in told["costs"]}
    return costs["F", 0], costs["B", 0]


def elapsed(chunks: int, latency: float, blocking: bool = False) -> float:
    """Simulated step with F = 1 and B = 2 a rank; latency: of one hop, in the same unit."""
    name = "1f1b" if chunks == 1 else "interleaved-1f1b"
    order = schedule(name).build(RANKS, MICROBATCHES, chunks=chunks)
    links = Links(occupied=latency, blocking=True) if blocking else Links(latency=latency)
    return simulate(assemble(order), Costs.even(order.placement), links).elapsed


def break_even(chunks: int, blocking: bool = False, most: float = 8.0) -> float:
    """The hop's latency from which on so many stages a rank are no faster than one, by bisection."""
    low, high = 0.0, most
    while high - low > 1e-6:
        middle = (low + high) / 2
        slower = elapsed(chunks, middle, blocking) >= elapsed(1, middle, blocking)
        low, high = (low, middle) if slower else (middle, high)
    return round(high, 4)


def _simulated() -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    for chunks in (1, 2, 4, 8):
        bubble = elapsed(chunks, 0.0) / (3 * MICROBATCHES) - 1
        found[f"formula, v={chunks}"] = {"bubble": (RANKS - 1) / (chunks * MICROBATCHES)}
        found[f"simulated, v={chunks}"] = {"bubble": bubble}
        if chunks > 1:
            more = {"even": break_even(chunks), "even_blocking": break_even(chunks, blocking=True)}
            found[f"simulated, v={chunks}"] = {"bubble": bubble, **more}
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        f"measured: two processes whose stages sleep, a rank's forward {UNIT} s and its backward twice that; "
        "the formula's steps are 15 and 13.5 forwards at m=4.",
        f"simulated: p={RANKS}, m={MICROBATCHES}, F=1 and B=2 a rank; latencies in units of F.",
        "rule 3 is given the seconds that the first stage's forward and backward took, and nothing else.",
        "Scatter/gather is not measured: there is no tensor parallelism yet.",
    ]
    inside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(inside)}."] if inside else notes


EXPERIMENT = Experiment(
    slug="megatron-interleaved",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "step": "s a step, measured",
        "simulated": "s a step, simulated",
        "gain": "share of 1F1B's step saved",
        "predicted": "s a step, by rule 3",
        "rows": "rows of a micro-batch",
        "bubble": "idle / ideal time, simulated",
        "even": "latency of a hop that cancels the gain, in forwards",
        "even_blocking": "the same where ranks wait for messages",
    },
    notes=_notes,
)
