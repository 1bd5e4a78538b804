"""What the event simulator says of a pipeline: how long it takes, what it holds, what it computes again.

Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from shunter.plan import communication
from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT
from shunter.schedule.action import RECOMPUTE as REDO
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs, Links
from shunter.schedule.order import Order
from shunter.schedule.program import Program
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate


def elapsed(
    choice: Choices,
    placement: Sequence[int],
    forward: Sequence[float],
    backward: Sequence[float],
    weights: Sequence[float],
    again: Sequence[float] | None,
    name: str,
    chunks: int,
    m: int,
    links: Links,
    limit: int,
) -> float:
    """Seconds from the first forward to the last backward, as simulated. again: of each stage, to compute it
    once more, where it is. limit: nodes of a program."""
    pp = int(choice.pp[0])
    if pp == 1:
        return m * (sum(forward) + sum(backward))
    halves = schedule(name).halves
    seconds: dict[tuple[str, int], float] = {}
    for stage in range(len(placement)):
        seconds[FORWARD, stage] = forward[stage]
        if halves:
            seconds[INPUT, stage] = backward[stage] - weights[stage]
            seconds[WEIGHT, stage] = weights[stage]
        else:
            seconds[BACKWARD, stage] = backward[stage]
        if again is not None:
            seconds[REDO, stage] = again[stage]
    redo = again is not None
    many = 2 * len(placement)
    # Stages that go there and back take longer to find their period.
    least = m if name == "gpipe" else 3 * pp if name == "zbv" else 2 * pp
    long = max(least + pp, limit // many // pp * pp)
    if m <= long:
        return simulate(_program(name, pp, m, chunks, redo), Costs(seconds), links).elapsed
    # After the first micro-batches each further group takes as long as the one before.
    rest = m % pp
    low, high = long - pp + rest - (pp if rest else 0), long + rest - (pp if rest else 0)
    a, b = (
        simulate(_program(name, pp, count, chunks, redo), Costs(seconds), links).elapsed
        for count in (low, high)
    )
    return b + (m - high) * (b - a) / (high - low)


def links_of(question: Question, choice: Choices) -> Links:
    """Between neighbouring ranks of the pipeline, each pair by the blocks of devices that it crosses; the
    last one and the first are neighbours where a rank has several stages in turn."""
    width, pp = int(choice.stage_ranks[0]), int(choice.pp[0])
    size = float(communication.message(question, choice)[0])
    turns = {(rank, rank + 1) for rank in range(pp - 1)}
    if int(choice.chunks[0]) > 1 and SCHEDULES[choice.schedule[0]] != "zbv":
        turns.add((pp - 1, 0))
    between: dict[tuple[int, int], tuple[float, float]] = {}
    for a, b in turns:
        latency, bandwidth = question.fabric.between(a * width, b * width, width)
        found = communication.hop(
            question, size, latency, size / (bandwidth * question.coefficients["links"])
        )
        between[a, b] = between[b, a] = found
    blocking = question.practice.blocking and width * pp > 1
    if len(kinds := set(between.values())) == 1:
        latency, occupied = kinds.pop()
        return Links(latency=latency, occupied=occupied, blocking=blocking)
    return Links(between=between, blocking=blocking)


@lru_cache(maxsize=64)
def held_at_most(name: str, pp: int, m: int, chunks: int, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Micro-batches of a whole rank that each holds at most, where its stages have unequal layers."""
    order = _order(name, pp, m, chunks)
    found = []
    for rank, actions in enumerate(order.actions):
        layers = sum(counts[stage] for stage, holder in enumerate(order.placement) if holder == rank)
        held = most = 0
        for action in actions:
            if action.op == FORWARD:
                held += counts[action.stage]
                most = max(most, held)
            elif action.op in (BACKWARD, WEIGHT):
                held -= counts[action.stage]
        found.append(most / layers)
    return tuple(found)


@lru_cache(maxsize=64)
def _order(name: str, pp: int, m: int, chunks: int, redo: bool = False) -> Order:
    if redo:
        return recomputed(_order(name, pp, m, chunks))
    return schedule(name).build(pp, m, chunks=chunks if name != "zbv" else None)


@lru_cache(maxsize=64)
def _program(name: str, pp: int, m: int, chunks: int, redo: bool = False) -> Program:
    return assemble(_order(name, pp, m, chunks, redo))


@lru_cache(maxsize=64)
def times_again(name: str, pp: int, m: int, chunks: int) -> tuple[float, ...]:
    """Of each stage, the share of its micro-batches for which it is computed again."""
    few = m if m <= 4 * pp else 3 * pp + m % pp
    order = _order(name, pp, few, chunks, redo=True)
    found = [0.0] * len(order.placement)
    for actions in order.actions:
        for action in actions:
            if action.op == REDO:
                found[action.stage] += 1 / few
    return tuple(found)
