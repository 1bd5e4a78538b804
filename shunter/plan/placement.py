"""Which node holds which part of a grid: annealing, trying everything, and a proof by CP-SAT.

Nothing here knows what is placed: an objective takes a permutation of nodes and gives a number to make small.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from shunter.config.errors import MissingExtra, ShunterError

MOST_TRIED = 8  # nodes of which all orders are tried: 40,320
MOST_PROVEN = 12  # nodes for CP-SAT
COOLING = 0.999

Objective = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Placement:
    """grid: node of each place. value: of the objective. start: its value before. proven: nothing is less."""

    grid: tuple[int, ...]
    value: float
    start: float
    proven: bool = False
    steps: int = 0


def anneal(
    objective: Objective,
    nodes: int,
    *,
    seed: int = 0,
    steps: int = 20_000,
    seconds: float | None = None,
    start: Sequence[int] | None = None,
) -> Placement:
    """Simulated annealing over orders of nodes (Pipette's section 4): the best that was seen.

    A step reverses a segment, moves a node, swaps two, or moves a segment, as it is or reversed. It is taken
    if it is not worse, else with probability exp(-d / t): d is how much worse, scaled into (0.1, 1], and t
    falls from 1 by a thousandth each step. seconds: stop after that long at the latest; without it the
    result depends on the seed alone. start: the first order, random by default."""
    draw = random.Random(seed)
    grid = list(start) if start is not None else draw.sample(range(nodes), nodes)
    value = first = objective(grid)
    best, least = tuple(grid), value
    heat, until, done = 1.0, math.inf if seconds is None else time.monotonic() + seconds, 0
    if nodes < 2:
        return Placement(best, least, first, True)
    for done in range(1, steps + 1):
        changed = _neighbour(grid, draw)
        other = objective(changed)
        worse = other - value
        if worse <= 0 or draw.random() < math.exp(-_scaled(worse) / heat):
            grid, value = changed, other
            if value < least:
                best, least = tuple(grid), value
        heat = max(heat * COOLING, 1e-9)
        if not done % 256 and time.monotonic() > until:
            break
    return Placement(best, least, first, steps=done)


def _scaled(worse: float) -> float:
    """Without its unit: 0.0023 and 23 both give 0.23."""
    return worse / 10.0 ** (math.floor(math.log10(worse)) + 1)


def _neighbour(grid: list[int], draw: random.Random) -> list[int]:
    size = len(grid)
    a, b = sorted(draw.sample(range(size), 2))
    kind = draw.randrange(5)
    if kind == 0:  # reverse a segment
        return grid[:a] + grid[a : b + 1][::-1] + grid[b + 1 :]
    if kind == 1:  # move one
        rest = grid[:a] + grid[a + 1 :]
        return [*rest[:b], grid[a], *rest[b:]] if draw.random() < 0.5 else _front(grid, a, b)
    if kind == 2:  # swap two
        changed = list(grid)
        changed[a], changed[b] = changed[b], changed[a]
        return changed
    segment, rest = grid[a : b + 1], grid[:a] + grid[b + 1 :]
    at = draw.randrange(len(rest) + 1)
    return rest[:at] + (segment if kind == 3 else segment[::-1]) + rest[at:]


def _front(grid: list[int], a: int, b: int) -> list[int]:
    """The one at b moved before a."""
    rest = grid[:b] + grid[b + 1 :]
    return [*rest[:a], grid[b], *rest[a:]]


def try_all(objective: Objective, nodes: int) -> Placement:
    """The best of all orders. Raises ShunterError for more than 8 nodes."""
    if nodes > MOST_TRIED:
        raise ShunterError(
            f"{nodes} nodes have too many orders to try them all (the limit is {MOST_TRIED} nodes)",
            mend="Anneal instead.",
        )
    start = tuple(range(nodes))
    best = min(permutations(start), key=objective)
    return Placement(best, objective(best), objective(start), True, math.factorial(nodes))


def prove(
    hop: Sequence[Sequence[float]],
    ring: Sequence[Sequence[Sequence[float]]],
    inner: Sequence[float],
    stages: int,
    weight: float,
    *,
    seconds: float = 10.0,
    work: float | None = None,
    hint: Sequence[int] | None = None,
) -> Placement:
    """The order with least weight * (longest row of hops) + (slowest ring), with a proof, by CP-SAT.

    hop[a][b], ring[stage][a][b], inner[stage]: as `pipette.Objective` has them. Times are rounded to a
    millionth of the largest. seconds: after which it gives up; work: the same in CP-SAT's own count, some
    seconds each, by which a busy machine gives the same answer. Raises MissingExtra without OR-Tools,
    ShunterError for more than 12 nodes.
    """
    try:
        from ortools.sat.python import cp_model as cp
    except ImportError:
        raise MissingExtra("ortools", extra="solve", purpose="Proving that a placement is the best") from None
    nodes, rows = len(hop), len(hop) // stages
    if nodes > MOST_PROVEN:
        raise ShunterError(
            f"{nodes} nodes are too many to prove anything about (the limit is {MOST_PROVEN})",
            mend="Anneal instead.",
        )
    longest: float = max(weight * stages * max(map(max, hop)), *(max(map(max, r)) for r in ring), *inner)
    scale = 1e6 / max(longest, 1e-12)
    model = cp.CpModel()
    at = [model.new_int_var(0, nodes - 1, f"at{place}") for place in range(nodes)]
    model.add_all_different(at)
    pairs: dict[tuple[int, int], Any] = {}

    def cost(a: int, b: int, table: Sequence[Sequence[float]], name: str) -> Any:
        """The entry of a table for the nodes at two places."""
        if (a, b) not in pairs:
            pairs[a, b] = model.new_int_var(0, nodes * nodes - 1, f"pair{a}-{b}")
            model.add(pairs[a, b] == at[a] * nodes + at[b])
        values = [round(scale * value) for row in table for value in row]
        found = model.new_int_var(0, max(values), f"{name}{a}-{b}")
        model.add_element(pairs[a, b], values, found)
        return found

    most = 4 * 10**6 * max(1, rows)
    around, reduced = model.new_int_var(0, most, "around"), model.new_int_var(0, most, "reduced")
    weighted = [[weight * value for value in row] for row in hop]
    for row in range(rows):
        first = row * stages
        hops = [cost(p, p + 1, weighted, "hop") for p in range(first, first + stages - 1)]
        model.add(around >= sum(hops))
    for stage in range(stages):
        fixed = round(scale * inner[stage])
        model.add(reduced >= fixed)
        for row in range(rows if rows > 1 else 0):
            before = (row - 1) % rows * stages + stage
            model.add(reduced >= fixed + cost(before, row * stages + stage, ring[stage], f"ring{stage}."))
    model.minimize(around + reduced)
    for variable, value in zip(at, hint or (), strict=False):
        model.add_hint(variable, value)
    solver = cp.CpSolver()
    solver.parameters.num_workers, solver.parameters.random_seed = 1, 0
    solver.parameters.max_time_in_seconds = seconds
    if work is not None:
        solver.parameters.max_deterministic_time = work
    status = solver.solve(model)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        raise ShunterError(f"no placement was found in {seconds:g} s", mend="Give more time, or anneal.")
    grid = tuple(int(solver.value(each)) for each in at)
    value = solver.objective_value / scale
    return Placement(grid, value, value, status == cp.OPTIMAL)
