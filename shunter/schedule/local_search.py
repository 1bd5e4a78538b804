"""Improves a schedule by moving letters of its words, as simulated annealing does.

Only what lies on a critical path can shorten a schedule, so most moves are of it. The budget is a number of
operations timed, not of seconds: the same seed gives the same schedule on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from shunter.schedule.words import Problem, Times, Word

# Operations timed for each second asked for: about what one core does in pure Python.
RATE = 5_000_000
HOT, COLD = 0.08, 0.008  # temperatures, in mean costs of an operation
STEPS = (1, 1, 1, 2, 3, 5, 8)  # how far a letter moves
ON_PATH = 0.7  # share of moves of a critical path; the rest leave plateaus by other ways
BALANCE = 0.02  # weight of the ranks' mean end: among schedules of one length, the one with more room


def anneal(problem: Problem, words: Sequence[Word], seconds: float, goal: float, seed: int = 0) -> list[Word]:
    """The best words found from these, which fit; ends when `goal` is reached.

    seconds: about that long; counted in operations (RATE).
    """
    draw = random.Random(seed)
    here = [list(word) for word in words]
    times = problem.times(here)
    assert times is not None
    best, kept = times.elapsed, [list(word) for word in here]
    unit = math.fsum(problem.cost) / len(problem.cost) or 1.0
    value, path = _value(times), problem.critical(here, times, draw.choice)
    size = sum(map(len, here))
    budget = int(seconds * RATE / max(1, size))
    for turn in range(budget):
        if best <= goal * (1 + 1e-9):
            break
        heat = unit * HOT * (COLD / HOT) ** (turn / budget)
        moved = _move(problem, here, path, draw)
        if moved is None:
            continue
        rank, word = moved
        old, here[rank] = here[rank], word
        found = problem.times(here)
        if found is None:
            here[rank] = old
            continue
        worse = _value(found) - value
        if worse > 0 and draw.random() >= math.exp(-worse / heat):
            here[rank] = old
            continue
        value, path = value + worse, problem.critical(here, found, draw.choice)
        if found.elapsed < best * (1 - 1e-12):
            best, kept = found.elapsed, [list(each) for each in here]
    return kept


def _value(times: Times) -> float:
    return times.elapsed + BALANCE * math.fsum(times.free) / len(times.free)


def _move(
    problem: Problem, words: Sequence[Word], path: Sequence[tuple[int, int]], draw: random.Random
) -> tuple[int, Word] | None:
    """A rank with its changed word: two letters exchanged, or one elsewhere. None if it does not fit."""
    if draw.random() < ON_PATH:
        rank, place = draw.choice(path)
    else:
        rank = draw.randrange(len(words))
        if not words[rank]:
            return None
        place = draw.randrange(len(words[rank]))
    word = words[rank]
    other = place + draw.choice(STEPS) * draw.choice((-1, 1))
    if not 0 <= other < len(word) or word[place] == word[other]:
        return None
    changed = list(word)
    if draw.random() < 0.5:
        changed[place], changed[other] = changed[other], changed[place]
    else:
        changed.insert(other, changed.pop(place))
    return (rank, changed) if problem.fits(rank, changed) else None
