"""The shortest schedule with a proof, by OR-Tools' CP-SAT (extra `solve`): for small cases.

One worker, one seed and a budget in the solver's own deterministic time, so that the result is the same on
every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from shunter.config.errors import MissingExtra, ShunterError
from shunter.schedule.words import Problem, Word

# More operations than this are never proven in reasonable time; building the model alone takes long.
MOST = 4000
FINEST = 10**7  # steps of the longest schedule's time, and of a cap, where costs are no simple fractions
# The solver's deterministic time for each second asked for, about what one core does in it: where costs are
# simple fractions of each other, and where they had to be rounded, whose long numbers it counts too low.
DETERMINISTIC, ROUNDED = 0.3, 0.03

_SLACK = 1e-9


def need_solver(problem: Problem) -> Any:
    """The module cp_model. Raises MissingExtra without OR-Tools, ShunterError for a problem too large."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingExtra(
            "ortools", extra="solve", purpose="Proving that a schedule is the shortest"
        ) from None
    size = len(problem.cost) * problem.microbatches
    if size > MOST:
        raise ShunterError(
            f"{size} operations are too many to prove anything about (the limit is {MOST})",
            mend="Take fewer ranks or micro-batches, or leave the proof out.",
        )
    return cp_model


def prove(problem: Problem, words: Sequence[Word], bound: float, seconds: float) -> tuple[list[Word], float]:
    """Words no worse than these, and a lower bound of the elapsed time at least `bound`.

    Where costs are no simple fractions of each other they are rounded down, so that the bound holds for the
    true ones too.
    """
    cp = need_solver(problem)
    times = problem.times(words)
    assert times is not None
    finest = FINEST / max(times.elapsed, _SLACK)
    scale = _scale([*problem.cost, *problem.delay], finest)
    whole = copy.copy(problem)
    whole.cost = [_floor(value * scale) for value in problem.cost]
    whole.delay = [_floor(value * scale) for value in problem.delay]
    hints = whole.times(words)
    assert hints is not None
    model = cp.CpModel()
    horizon = int(hints.elapsed)
    least = min(horizon, math.floor(bound * scale + _SLACK))
    end = model.new_int_var(least, horizon, "elapsed")
    model.add_hint(end, horizon)
    begin = _variables(model, whole, hints.ends, horizon, end)
    for rank in range(problem.ranks):
        _one_at_a_time(model, whole, rank, begin)
        _room(model, whole, rank, begin, horizon)
    model.minimize(end)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = seconds * (ROUNDED if scale == finest else DETERMINISTIC)
    status = solver.solve(model)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return list(words), bound
    found = _words(whole, {key: solver.value(variable) for key, variable in begin.items()})
    better = problem.times(found)
    if better is None or not all(problem.fits(rank, word) for rank, word in enumerate(found)):
        found = list(words)  # rounding: what is next to nothing may have come before what it needs
    elif better.elapsed >= times.elapsed:
        found = list(words)
    return found, max(bound, math.ceil(solver.best_objective_bound - 1e-6) / scale)


def _variables(
    model: Any, problem: Problem, ends: Sequence[Sequence[float]], horizon: int, end: Any
) -> dict[tuple[int, int], Any]:
    """Begin of each operation, after its data; micro-batches in order, which loses nothing (words.py)."""
    begin: dict[tuple[int, int], Any] = {}
    cost = [int(value) for value in problem.cost]
    for letter, length in enumerate(cost):
        for k in range(problem.microbatches):
            begin[letter, k] = model.new_int_var(0, horizon - length, f"{letter}.{k}")
            model.add_hint(begin[letter, k], int(ends[letter][k]) - length)
    for (letter, k), variable in begin.items():
        source = problem.source[letter]
        if source >= 0:
            model.add(variable >= begin[source, k] + cost[source] + int(problem.delay[letter]))
        if problem.before[letter] not in (-1, source):
            before = problem.before[letter]
            model.add(variable >= begin[before, k] + cost[before])
        if k:
            model.add(variable >= begin[letter, k - 1] + cost[letter])
        model.add(end >= variable + cost[letter])
    return begin


def _one_at_a_time(model: Any, problem: Problem, rank: int, begin: dict[tuple[int, int], Any]) -> None:
    model.add_no_overlap(
        model.new_fixed_size_interval_var(begin[letter, k], int(problem.cost[letter]), "")
        for letter in problem.letters(rank)
        for k in range(problem.microbatches)
    )


def _room(model: Any, problem: Problem, rank: int, begin: dict[tuple[int, int], Any], horizon: int) -> None:
    """Activations, from the begin of a forward to the end of what releases them, as a cumulative resource."""
    if problem.caps[rank] >= problem.microbatches:
        return
    mine = [stage for stage in range(problem.stages) if problem.placement[stage] == rank]
    early = problem.released_at_input
    parts = [(1, early), (2, 1 - early)]  # (which operation releases it, share of the stage's activations)
    unit = _scale([share for _, share in parts], FINEST)
    intervals, demands = [], []
    for stage in mine:
        for op, share in parts:
            demand = _floor(share * unit)
            last = op * problem.stages + stage
            for k in range(problem.microbatches if demand else 0):
                length = model.new_int_var(0, horizon, "")
                until = begin[last, k] + int(problem.cost[last])
                intervals.append(model.new_interval_var(begin[stage, k], length, until, ""))
                demands.append(demand)
    model.add_cumulative(intervals, demands, _floor(problem.caps[rank] * len(mine) * unit))


def _words(problem: Problem, begin: dict[tuple[int, int], int]) -> list[Word]:
    """Each rank's letters by begin; of those that begin together, what takes no time comes first."""
    found: list[Word] = []
    for rank in range(problem.ranks):
        rows = [
            (begin[letter, k], problem.cost[letter] > 0, k, letter // problem.stages, letter)
            for letter in problem.letters(rank)
            for k in range(problem.microbatches)
        ]
        found.append([letter for *_, letter in sorted(rows)])
    return found


def _scale(values: Sequence[float], most: float) -> float:
    """What makes whole numbers of all values, if something up to `most` does; otherwise `most`."""
    found = 1
    for value in values:
        near = Fraction(value).limit_denominator(1000)
        if abs(float(near) - value) > 1e-12 * max(1.0, abs(value)):
            return most
        found = math.lcm(found, near.denominator)
    return float(found) if found <= most else most


def _floor(value: float) -> int:
    return math.floor(value + _SLACK)
