"""What experiments on layouts read of a training's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shunter.papers.experiment import Arm
from shunter.record import events


def losses(arm: Arm, job: str = "base") -> list[float]:
    """Of each step, nats/token."""
    return [float(step["loss"]) for step in steps(arm, job)]


def steps(arm: Arm, job: str = "base") -> list[dict[str, Any]]:
    """The ledger's, in order; of one that was done again, the last."""
    ledger = events.read(arm[job].path / "log" / "ledger.jsonl")
    found = {event["step"]: event for event in ledger if event["event"] == "step"}
    return [found[step] for step in sorted(found)]


def gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference of a step."""
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def traffic(arm: Arm, job: str = "base") -> list[dict[str, Any]]:
    """Of each rank, in the recorded step: see shunter.train.traffic."""
    told = events.read(arm[job].path / "log" / "events.jsonl")
    (event,) = (event for event in told if event["event"] == "traffic")
    ranks: list[dict[str, Any]] = event["ranks"]
    return ranks
