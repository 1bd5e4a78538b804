"""Faults as a person asks for them, and what came of them as a person reads it."""

from __future__ import annotations

from shunter.config.check import parse
from shunter.launch.drill import Outcome
from shunter.launch.inject import KINDS, Fault, random_fault
from shunter.record.points import POINTS


def chosen(
    kind: str,
    point: str | None,
    step: int | None,
    job: str | None,
    hit: int,
    times: int,
    steps: int,
    seed: int,
) -> list[Fault]:
    """`times` faults as described, or kills at points drawn by the seed. Raises ShunterError."""
    if point is None and step is None and kind == "kill":
        return [random_fault(seed, number, steps) for number in range(times)]
    default = "checkpoint.shard" if kind == "truncate" else "train.step"
    data = {"kind": kind, "point": point or default, "step": step, "job": job, "hit": hit}
    return [parse(Fault, {key: value for key, value in data.items() if value is not None})] * times


def catalogue() -> dict[str, dict[str, str]]:
    """Points and kinds with a sentence each."""
    return {"points": dict(POINTS), "kinds": dict(KINDS)}


def listing() -> str:
    """The catalogue as two columns."""
    lines = []
    for title, entries in catalogue().items():
        width = max(map(len, entries))
        lines += [title, *(f"  {name:<{width}}  {text}" for name, text in entries.items())]
    return "\n".join(lines)


def told(outcome: Outcome) -> str:
    """The outcome in some lines."""
    if outcome.code:
        return f"the recipe did not end well afterwards (exit code {outcome.code})"
    width = max(map(len, outcome.jobs), default=0)
    lines = []
    for name, job in outcome.jobs.items():
        equal = {True: "equal to the uninterrupted run", False: "DIFFERS from the uninterrupted run"}
        verdict = equal[outcome.equal[name]] if name in outcome.equal else job["content"][:12]
        attempts = f"{job['attempts']} attempt{'s' * (job['attempts'] > 1)}"
        lines.append(f"  {name:<{width}}  {attempts:<11}  {verdict}")
    struck = sum(attempt["struck"] for attempt in outcome.attempts)
    lines.append(f"{struck} of {len(outcome.attempts)} faults struck; the recipe ended well")
    if not outcome.equal:
        lines.append("(--compare STORE would compare every byte with an uninterrupted run)")
    return "\n".join(lines)
