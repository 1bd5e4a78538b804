"""A time below which no schedule of a problem can be, without searching.

The largest of: each rank alone, with the earliest times at which its operations can begin and the least that
follows them (Jackson's preemptive schedule, as in job-shop scheduling); and each rank's memory, as the area
that its activations occupy under the cap.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from shunter.schedule.words import Problem

_SLACK = 1e-9


def lower_bound(problem: Problem) -> float:
    """Least elapsed time, in the unit of the costs."""
    heads, tails = _heads(problem), _tails(problem)
    found = [0.0]
    for rank in range(problem.ranks):
        letters = problem.letters(rank)
        if letters:
            jobs = [
                (heads[letter][k], problem.cost[letter], tails[letter][k])
                for letter in letters
                for k in range(problem.microbatches)
            ]
            found += [_jackson(jobs), _area(problem, rank, heads)]
    return max(found)


def _capacity(problem: Problem, stage: int) -> int:
    """Micro-batches that a stage can hold at once at most: all, where part is released at another time."""
    rank = problem.placement[stage]
    if problem.released_at_input not in (0.0, 1.0) or problem.caps[rank] >= problem.microbatches:
        return problem.microbatches
    return min(problem.microbatches, int(problem.caps[rank] * problem.placement.count(rank) + _SLACK))


def _heads(problem: Problem) -> list[list[float]]:
    """Earliest begin of each letter's k-th, by its data, the k - 1 before it, and room on its stage."""
    stages, cost = problem.stages, problem.cost
    begin = [[0.0] * problem.microbatches for _ in cost]
    way = [*range(stages), *range(2 * stages - 1, stages - 1, -1), *range(2 * stages, 3 * stages)]
    release = stages if problem.released_at_input == 1.0 else 2 * stages
    for k in range(problem.microbatches):
        for letter in way:
            here, source = 0.0, problem.source[letter]
            if source >= 0:
                here = begin[source][k] + cost[source] + problem.delay[letter]
            if k:
                here = max(here, begin[letter][k - 1] + cost[letter])
            if letter < stages and k >= (room := _capacity(problem, letter)):
                freed = release + letter
                here = max(here, begin[freed][k - room] + cost[freed])
            begin[letter][k] = here
    return begin


def _tails(problem: Problem) -> list[list[float]]:
    """Least time from the end of each letter's k-th to the end of all."""
    stages, cost, last = problem.stages, problem.cost, problem.microbatches - 1
    tail = [[0.0] * problem.microbatches for _ in cost]
    users: list[list[int]] = [[] for _ in cost]
    for letter, source in enumerate(problem.source):
        if source >= 0:
            users[source].append(letter)
    way = [*range(2 * stages, 3 * stages), *range(stages, 2 * stages), *range(stages - 1, -1, -1)]
    freeing = stages if problem.released_at_input == 1.0 else 2 * stages
    for k in range(last, -1, -1):
        for letter in way:
            here = max(
                (problem.delay[user] + cost[user] + tail[user][k] for user in users[letter]), default=0.0
            )
            if k < last:
                here = max(here, cost[letter] + tail[letter][k + 1])
            stage = letter - freeing
            if 0 <= stage < stages and k + (room := _capacity(problem, stage)) <= last:
                here = max(here, cost[stage] + tail[stage][k + room])
            tail[letter][k] = here
    return tail


def _jackson(jobs: Sequence[tuple[float, float, float]]) -> float:
    """Least end of (head, cost, tail) on one machine that may interrupt: always the longest tail first."""
    waiting = sorted(jobs)
    ready: list[tuple[float, float]] = []
    now = best = 0.0
    at = 0
    while at < len(waiting) or ready:
        if not ready:
            now = max(now, waiting[at][0])
        while at < len(waiting) and waiting[at][0] <= now + _SLACK:
            heapq.heappush(ready, (-waiting[at][2], waiting[at][1]))
            at += 1
        tail, left = heapq.heappop(ready)
        until = waiting[at][0] if at < len(waiting) else math.inf
        if now + left <= until:
            now += left
            best = max(best, now - tail)
        else:
            heapq.heappush(ready, (tail, left - (until - now)))
            now = until
    return best


def _area(problem: Problem, rank: int, heads: Sequence[Sequence[float]]) -> float:
    """Head plus activations times how long each is held at least, over the cap."""
    stages, cost, count = problem.stages, problem.cost, problem.placement.count(rank)
    cap = min(problem.caps[rank], problem.microbatches)
    if problem.released_at_input in (0.0, 1.0):
        cap = int(cap * count + _SLACK) / count
    mine = [stage for stage in range(stages) if problem.placement[stage] == rank]
    area = 0.0
    for stage in mine:
        ended = heads[stages + stage][0] + cost[stages + stage] - heads[stage][0]
        area += (ended + (1 - problem.released_at_input) * cost[2 * stages + stage]) / count
    return heads[mine[0]][0] + problem.microbatches * area / cap
