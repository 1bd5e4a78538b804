"""A good schedule for given costs and memory, and how far from the best one it may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.schedule import exact
from shunter.schedule.assemble import assemble
from shunter.schedule.bound import lower_bound
from shunter.schedule.builders import rounds, single, vee
from shunter.schedule.builders.controlled import capped, choices, in_turn, listed
from shunter.schedule.builders.listed import need_room
from shunter.schedule.costs import Costs, Links
from shunter.schedule.local_search import RATE, anneal
from shunter.schedule.order import Order
from shunter.schedule.order import vee as vee_placement
from shunter.schedule.simulate import simulate
from shunter.schedule.words import Problem

# Elapsed time and bound agree if they do to this relative precision; costs that are no simple fractions of
# each other are rounded for the solver.
PRECISION = 1e-5
KINDS = ("half", "min")


@dataclass(frozen=True)
class Synthesis:
    """order, with the backward in halves; elapsed, simulated, and a time below which no order is, in the unit
    of the costs; proven where the two agree; how: what found the order."""

    order: Order
    elapsed: float
    bound: float
    proven: bool
    how: str

    @property
    def gap(self) -> float:
        """How much longer than the bound, as a share of the bound; 0 where it is proven."""
        return 0.0 if self.proven or not self.bound else self.elapsed / self.bound - 1


def synthesize(
    placement: Sequence[int],
    microbatches: int,
    costs: Costs,
    caps: float | Sequence[float],
    *,
    links: Links | None = None,
    released_at_input: float = 0.0,
    seconds: float = 5.0,
    prove: bool = False,
    seed: int = 0,
) -> Synthesis:
    """The shortest order found in which no rank holds more than its cap.

    placement: the rank of each stage.
    caps:      micro-batches of a whole rank; one number, or one for each rank.
    links:     latencies, and occupied links: their queues are simulated, but left out of search and bound.
    released_at_input: share of a stage's activations that the input's gradient releases.
    seconds:   about how long to improve it, and again about how long to prove it. Both count steps, not
               seconds, so that the same arguments give the same order everywhere.
    prove:     also look for a proof that nothing is shorter, with the extra `solve`.

    Raises ShunterError for a cap below one micro-batch and for arguments out of range, MissingExtra.
    """
    caps = _checked(placement, microbatches, costs, caps, released_at_input, seconds)
    problem = Problem(placement, microbatches, costs, caps, links=links, released_at_input=released_at_input)
    if prove:
        exact.need_solver(problem)  # what cannot be done is said before any work
    bound = lower_bound(problem)
    best: Order | None = None
    how, elapsed = "", math.inf
    budget = seconds * RATE
    for name, order in _starts(problem, costs, links):
        words = problem.words(order)
        if not all(problem.fits(rank, word) for rank, word in enumerate(words)):
            continue
        halves = problem.order(words)
        found = _elapsed(halves, costs, links, released_at_input)
        if found < elapsed * (1 - 1e-12):
            best, how, elapsed = halves, name, found
        budget -= 20 * sum(map(len, words))  # listing takes about so much longer than timing
        if elapsed <= bound * (1 + PRECISION) or (best is not None and budget < 0.7 * seconds * RATE):
            break
    assert best is not None  # one micro-batch after the other always fits
    for turn in range(2):  # the second time from what the first one found, hot again
        if elapsed > bound * (1 + PRECISION):
            words = anneal(problem, problem.words(best), max(0.0, budget) / RATE / 2, bound, seed + turn)
            best, elapsed, how = _better(problem, words, costs, links, best, elapsed, how, "local search")
    if prove and elapsed > bound * (1 + PRECISION):
        words, bound = exact.prove(problem, problem.words(best), bound, seconds)
        best, elapsed, how = _better(problem, words, costs, links, best, elapsed, how, "CP-SAT")
    bound = min(bound, elapsed)  # sums in another order may differ by rounding
    return Synthesis(best, elapsed, bound, elapsed <= bound * (1 + PRECISION), how)


def _checked(
    placement: Sequence[int],
    microbatches: int,
    costs: Costs,
    caps: float | Sequence[float],
    released_at_input: float,
    seconds: float,
) -> list[float]:
    """A cap for each rank."""
    if not placement or min(placement) < 0:
        raise ShunterError(
            "the placement names no rank for a stage", mend="Give each stage a rank from 0 on."
        )
    if microbatches < 1:
        raise ShunterError(f"micro-batches are {microbatches}", mend="It must be at least 1.")
    if not 0 <= released_at_input <= 1:
        raise ShunterError(
            f"the share released at the input's gradient is {released_at_input:g}",
            mend="Give a share from 0 to 1.",
        )
    if not 0 <= seconds < math.inf:
        raise ShunterError(f"seconds are {seconds:g}", mend="Give a number from 0 on.")
    ranks = 1 + max(placement)
    found = [float(caps)] * ranks if isinstance(caps, int | float) else [float(cap) for cap in caps]
    if len(found) != ranks:
        raise ShunterError(
            f"there are {len(found)} caps for {ranks} ranks", mend="Give one cap, or one for each rank."
        )
    for rank, cap in enumerate(found):
        if math.isnan(cap):
            raise ShunterError(f"the cap of rank {rank} is no number", mend="Give micro-batches, such as 4.")
    for (op, stage), value in costs.seconds.items():
        if not 0 <= value < math.inf:
            raise ShunterError(
                f"the cost of {op} on stage {stage} is {value:g}", mend="Give a time from 0 on."
            )
    need_room(placement, found)
    return found


def _starts(problem: Problem, costs: Costs, links: Links | None) -> Iterator[tuple[str, Order]]:
    """Orders to begin with; the named ones come only where the placement is theirs."""
    placement, m, p = problem.placement, problem.microbatches, problem.ranks
    early = problem.released_at_input
    yield (
        "list scheduling",
        capped(placement, m, problem.caps, costs=costs, kinds=KINDS, released_at_input=early, links=links),
    )
    if placement == tuple(range(p)):
        yield "1f1b", single.one_f_one_b(p, m)
    if placement == tuple(stage % p for stage in range(problem.stages)) and m >= p:
        yield "zb1p", rounds.interleaved_zero_bubble(p, m, problem.stages // p)
    if placement == vee_placement(p) and p > 1:
        yield "zbv", vee.zero_bubble_v(p, m)
    for choice in (*choices(placement, costs, KINDS), in_turn(placement)):
        made = listed(placement, m, problem.caps, choice, costs, early, links)
        if made is not None:
            yield "list scheduling", made[0]


def _elapsed(order: Order, costs: Costs, links: Links | None, released_at_input: float) -> float:
    return simulate(assemble(order, released_at_input=released_at_input), costs, links).elapsed


def _better(
    problem: Problem,
    words: Sequence[list[int]],
    costs: Costs,
    links: Links | None,
    best: Order,
    elapsed: float,
    how: str,
    name: str,
) -> tuple[Order, float, str]:
    """The words' order if it is shorter where links queue too, otherwise what there was."""
    order = problem.order(words)
    found = _elapsed(order, costs, links, problem.released_at_input)
    return (order, found, name) if found < elapsed * (1 - 1e-12) else (best, elapsed, how)
