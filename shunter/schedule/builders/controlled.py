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
from shunter.schedule.action import FORWARD, INPUT, WEIGHT
from shunter.schedule.builders.listed import ListScheduler, Urgency, need_room
from shunter.schedule.costs import Costs, Links
from shunter.schedule.order import Order, looped, vee

# (kind, reserve, up, down, weight) of `_vee`. Each is the best of the whole grid for some number of ranks
# from 4 to 16 with twice as many micro-batches; together they are the best for all of these.
FAVOURITES = (
    ("min", 3, -1, 2, 4), ("half", 3, -1, 8, 0), ("min", 3, 4, 8, 4), ("min", 3, 0, 8, 4),
    ("min", 3, 2, 2, 4), ("half", 3, -1, 8, 4), ("half", 2, -1, -8, 0),
)  # fmt: skip

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
    cap: float | Sequence[float],
    *,
    costs: Costs | None = None,
    kinds: Sequence[str] = ("half", "min"),
    released_at_input: float = 0.0,
    links: Links | None = None,
    effort: int = EFFORT,
) -> Order:
    """The shortest of the orders found in which no rank holds more than `cap` micro-batches (one number, or
    one for each rank).

    Raises ShunterError where a cap is below one micro-batch.
    """
    costs = costs or Costs.even(tuple(placement))
    few = min(microbatches, 3 * (1 + max(placement)))
    best: tuple[float, Choice] | None = None
    steps = 0
    for choice in choices(placement, costs, kinds):
        made = listed(placement, few, cap, choice, costs, released_at_input, links)
        if made is not None and (best is None or made[1] < best[0] - 1e-9):
            best = made[1], choice
        steps += 3 * few * len(placement)
        if steps >= effort and best is not None:
            break
    if best is not None:
        whole = listed(placement, microbatches, cap, best[1], costs, released_at_input, links)
        if whole is not None:
            return whole[0]
    last = listed(placement, microbatches, cap, in_turn(placement), costs, released_at_input, links)
    assert last is not None  # one micro-batch after the other needs no more than one's room
    return last[0]


Choice = tuple[Urgency, int]  # with the list scheduler's reserve


def listed(
    placement: Sequence[int],
    microbatches: int,
    cap: float | Sequence[float],
    choice: Choice,
    costs: Costs,
    released_at_input: float = 0.0,
    links: Links | None = None,
) -> tuple[Order, float] | None:
    """Order and elapsed time by one urgency, or None where it takes room in a way that leaves all waiting.

    Raises ShunterError where a cap is below one micro-batch.
    """
    caps = [cap] * (1 + max(placement)) if isinstance(cap, int | float) else cap
    need_room(placement, caps)
    urgency, reserve = choice
    scheduler = ListScheduler(
        placement, microbatches, costs, caps, urgency,
        reserve=reserve, released_at_input=released_at_input, links=links,
    )  # fmt: skip
    try:
        return scheduler.run()
    except ShunterError:
        return None


def in_turn(placement: Sequence[int]) -> Choice:
    """Earlier micro-batches before later ones: keeps every cap that can be kept, since a later one passes
    only where the earlier ones' room on all stages is left."""
    stages = len(placement)

    def urgency(op: str, stage: int, microbatch: int) -> float:
        return microbatch * stages + (stage if op == FORWARD else -1)

    return urgency, max(placement.count(rank) for rank in set(placement))


def choices(placement: Sequence[int], costs: Costs, kinds: Sequence[str]) -> Iterator[Choice]:
    """Urgencies with their reserves; those that serve most cases first."""
    ranks, stages = 1 + max(placement), len(placement)
    if stages == ranks:
        for slower, shift in product((3.0, 3.5, 2.5, 4.0), (-1, 0, 1, 3, -4)):
            yield _single(ranks, slower, shift), 1
        yield _single(ranks, 0.0, 0.0, first=-math.inf), 1  # gradients before everything
    elif tuple(placement) == vee(ranks):
        for kind, reserve, *places in sorted(FAVOURITES, key=lambda each: kinds.index(each[0])):
            yield _vee(ranks, kind, *places), reserve
        yield _chained(placement, costs, 1.0, -1.0, 0.0), 2
        for reserve, up, down, weight in product((3, 2), (-1, 4, 2, 0), (-8, 8, 2), (0, 4, -1000)):
            for kind in kinds:
                yield _vee(ranks, kind, up, down, weight), reserve
    most = max(placement.count(rank) for rank in set(placement))
    for stretch, later, defer in product((1.0, 1.5, 2.5, 0.5), (0.0, -1.0, 1.0), (0.0, 1.0, -1000.0)):
        for reserve in sorted({1, 2, most}):
            yield _chained(placement, costs, stretch, later, defer), reserve


def _chained(placement: Sequence[int], costs: Costs, stretch: float, shift: float, weight: float) -> Urgency:
    """Places from the costs: where a lone micro-batch would be, one interval of the busiest rank apart.

    stretch: how many times longer the way takes than alone. shift, weight: how many intervals later forwards
    and gradients of weights would like to be.
    """
    busy: dict[int, float] = {}
    places: dict[tuple[str, int], float] = {}
    now = 0.0
    for stage in range(len(placement)):
        places[FORWARD, stage], now = now, now + costs.of(FORWARD, stage)
    for stage in reversed(range(len(placement))):
        places[INPUT, stage], now = now, now + costs.of(INPUT, stage)
        work = sum(costs.of(op, stage) for op in (FORWARD, INPUT, WEIGHT))
        busy[placement[stage]] = busy.get(placement[stage], 0.0) + work
    interval = max(busy.values())

    def urgency(op: str, stage: int, microbatch: int) -> float:
        place = places[INPUT if op == WEIGHT else op, stage] * stretch
        later = shift if op == FORWARD else weight if op == WEIGHT else 0.0
        return interval * (microbatch + later) + place

    return urgency


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
