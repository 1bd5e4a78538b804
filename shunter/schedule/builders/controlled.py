"""Schedules that hold what they are told to: ZB2P, V-Half, V-Min.

Each repeats a building block, in which every operation of a micro-batch has a place that moves by one
interval from micro-batch to micro-batch (arXiv 2405.15362, section 3). The places say how urgent an operation
is; the list scheduler does the rest, and so also finds warm-up and end. Which shifts of the places serve it
best depends on the number of ranks: a few are tried, on few micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from shunter.config.errors import ShunterError
from shunter.schedule.action import FORWARD, INPUT
from shunter.schedule.builders.listed import ListScheduler, Urgency
from shunter.schedule.costs import Costs
from shunter.schedule.order import Order, looped, vee

# Node-steps that looking for the best shifts may take: well under a second.
EFFORT = 60_000


def zero_bubble_2p(ranks: int, microbatches: int) -> Order:
    """ZB2P (arXiv 2401.10241, section 2.2, ZB-H2): no bubble within any rank's span, for up to 2 p - 1
    micro-batches held."""
    return capped(looped(ranks, 1), microbatches, 2 * ranks - 1)


def v_half(ranks: int, microbatches: int) -> Order:
    """V-Half (arXiv 2405.15362, section 4): about half of 1F1B's activations, p / 2 + 1 micro-batches."""
    return capped(vee(ranks), microbatches, _half(ranks), kinds=("half", "min"))


def v_min(ranks: int, microbatches: int) -> Order:
    """V-Min (arXiv 2405.15362, section 4): about a third of 1F1B's activations, at the price of bubbles
    that grow where passes are uneven."""
    third = -(-(ranks + 4) // 3)
    return capped(vee(ranks), microbatches, min(third, _half(ranks)), kinds=("min", "half"))


def _half(ranks: int) -> int:
    return (ranks + 2) // 2 if ranks > 1 else 1


def capped(
    placement: Sequence[int],
    microbatches: int,
    cap: float,
    *,
    costs: Costs | None = None,
    kinds: Sequence[str] = ("even",),
    released_at_input: float = 0.0,
    effort: int = EFFORT,
) -> Order:
    """The shortest of the orders found in which no rank holds more than `cap` micro-batches.

    Raises ShunterError where the cap is below one stage's activations.
    """
    ranks = 1 + max(placement)
    costs = costs or Costs.even(tuple(placement))
    few = min(microbatches, 3 * ranks)
    best: tuple[float, Urgency, int] | None = None
    refusal: ShunterError | None = None
    steps = 0
    for urgency, reserve in _choices(placement, kinds):
        scheduler = ListScheduler(
            placement, few, costs, [cap] * ranks, urgency,
            reserve=reserve, released_at_input=released_at_input,
        )  # fmt: skip
        try:
            _, end = scheduler.run()
        except ShunterError as error:
            refusal = error
        else:
            if best is None or end < best[0] - 1e-9:
                best = end, urgency, reserve
        steps += 3 * few * len(placement)
        if steps >= effort and best is not None:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    order, _ = ListScheduler(
        placement, microbatches, costs, [cap] * ranks, best[1],
        reserve=best[2], released_at_input=released_at_input,
    ).run()  # fmt: skip
    return order


def _choices(placement: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[Urgency, int]]:
    """Urgencies with their reserves; those that serve most cases first."""
    ranks, stages = 1 + max(placement), len(placement)
    if stages == ranks:
        for slower, shift in product((3.0, 3.5, 2.5, 4.0), (-1, 0, 1, 3, -4)):
            yield _single(ranks, slower, shift), 1
        yield _single(ranks, 0.0, 0.0, first=-math.inf), 1  # gradients before everything
        return
    for reserve, up, down, weight in product((2, 3), (-1, 4, 2, 0), (-8, 8, 2), (0, 4, -1000)):
        for kind in kinds:
            yield _vee(ranks, kind, up, down, weight), reserve


def _single(ranks: int, interval: float, shift: float, first: float = 0.0) -> Urgency:
    """1F1B's places: down with the forwards, up again with the gradients."""

    def urgency(op: str, stage: int, microbatch: int) -> float:
        if op == FORWARD:
            return 3 * microbatch + stage + shift
        return interval * microbatch + 2 * ranks - stage - 1 + (first if op == INPUT else 0)

    return urgency


def _vee(ranks: int, kind: str, up: float, down: float, weight: float) -> Urgency:
    """Places of the V-shaped blocks, one interval being six operations (two stages, three each).

    up, down, weight: how much later than in the block the forward that goes up, the gradient that goes
    back down the first stages, and the gradients of weights would like to be.
    """
    half = kind == "half"
    shift = (3 if ranks % 2 == 0 else 0) if half else (2 if ranks % 3 == 0 else 0)
    places: dict[tuple[str, int], float] = {}
    for rank in range(ranks):
        first, last = rank, 2 * ranks - 1 - rank
        if half:
            places[FORWARD, first], places[FORWARD, last] = 2 * rank, 3 * ranks - rank - 2
            places[INPUT, last] = 3 * ranks + shift + 2 * rank - 1
            places[INPUT, first] = 6 * ranks + shift - rank - 2
        else:
            places[FORWARD, first], places[FORWARD, last] = rank, 2 * ranks - rank - 1
            places[INPUT, last] = 2 * ranks + shift + rank
            places[INPUT, first] = 4 * ranks + shift - rank - 1
        places[FORWARD, last] += up
        places[INPUT, first] += down

    def urgency(op: str, stage: int, microbatch: int) -> float:
        place = places.get((op, stage))
        if place is None:  # a weight's gradient: at its input's gradient, or later
            place = places[INPUT, stage] - (down if stage < ranks else 0) + weight
        return 6 * microbatch + place

    return urgency
