"""A schedule as one word for each rank, for searching: letters are (operation, stage).

Micro-batches are alike, so each operation of each stage may as well take them in their order: wherever one
overtakes another, the two can change names from there on, and neither a time nor the memory changes. So the
k-th occurrence of a letter is micro-batch k, and moving letters is all that a search has to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from shunter.schedule.builders.listed import delays
from shunter.schedule.costs import Costs, Links
from shunter.schedule.order import Order

OPS = (FORWARD, INPUT, WEIGHT)
Word = list[int]

_SLACK = 1e-9


class Times(NamedTuple):
    """elapsed; ends[letter][k] of each micro-batch; free[rank], when the rank has done its word."""

    elapsed: float
    ends: list[list[float]]
    free: list[float]


class Problem:
    """What there is to schedule. A letter is OPS.index(op) * stages + stage.

    caps: for each rank, in micro-batches. Messages take latency and the time they occupy their link; that
    others occupy it too is left out, so elapsed times are lower bounds where links are occupied.
    """

    def __init__(
        self,
        placement: Sequence[int],
        microbatches: int,
        costs: Costs,
        caps: Sequence[float],
        *,
        links: Links | None = None,
        released_at_input: float = 0.0,
    ) -> None:
        self.placement, self.microbatches, self.caps = tuple(placement), microbatches, tuple(caps)
        self.released_at_input = released_at_input
        self.stages, self.ranks = len(self.placement), 1 + max(self.placement)
        stages = range(self.stages)
        self.cost = [costs.of(op, stage) for op in OPS for stage in stages]
        forward, gradient, weight = 0, self.stages, 2 * self.stages
        self.source = [stage - 1 for stage in stages]  # the letter that a letter's data is from, or -1
        self.source += [
            gradient + stage + 1 if stage + 1 < self.stages else forward + stage for stage in stages
        ]
        self.source += [gradient + stage for stage in stages]
        self.before = [-1] * self.stages + [*range(forward, gradient), *range(gradient, weight)]
        self.rank = [rank for _ in OPS for rank in self.placement]
        late = delays(self.placement, links or Links())
        self.delay = [
            0.0 if at < 0 else late.get((OPS[at // self.stages], at % self.stages), 0.0)
            if self.rank[at] != self.rank[letter] else 0.0
            for letter, at in enumerate(self.source)
        ]  # fmt: skip
        share = [1 / self.placement.count(rank) for rank in self.placement]
        self.memory = [*share, *(-part * released_at_input for part in share)]
        self.memory += [-part * (1 - released_at_input) for part in share]

    def letters(self, rank: int) -> list[int]:
        """The letters of a rank's word."""
        return [letter for letter, owner in enumerate(self.rank) if owner == rank]

    def words(self, order: Order) -> list[Word]:
        """The words of an order; a whole backward becomes its two halves."""
        found: list[Word] = []
        for actions in order.actions:
            word: Word = []
            for action in actions:
                halves = (INPUT, WEIGHT) if action.op == BACKWARD else (action.op,)
                word += [OPS.index(op) * self.stages + action.stage for op in halves]
            found.append(word)
        return found

    def order(self, words: Sequence[Word]) -> Order:
        """The order that words stand for."""
        actions: list[tuple[Action, ...]] = []
        for word in words:
            seen = [0] * len(self.cost)
            row: list[Action] = []
            for letter in word:
                row.append(Action(letter % self.stages, OPS[letter // self.stages], seen[letter]))
                seen[letter] += 1
            actions.append(tuple(row))
        return Order(self.placement, tuple(actions), self.microbatches)

    def fits(self, rank: int, word: Word) -> bool:
        """Within the cap, and each operation after the one before it on the same stage."""
        held, cap, seen = 0.0, self.caps[rank] + _SLACK, [0] * len(self.cost)
        memory, before = self.memory, self.before
        for letter in word:
            held += memory[letter]
            count = seen[letter] = seen[letter] + 1
            if held > cap or (before[letter] >= 0 and seen[before[letter]] < count):
                return False
        return True

    def times(self, words: Sequence[Word]) -> Times | None:
        """Everything as early as the words allow; None where ranks wait for each other for ever."""
        source, cost, delay = self.source, self.cost, self.delay
        ends: list[list[float]] = [[] for _ in cost]
        at, free = [0] * len(words), [0.0] * len(words)
        waiting: list[list[int]] = [[] for _ in cost]
        turns = list(range(len(words) - 1, -1, -1))
        while turns:
            rank = turns.pop()
            word, place, now = words[rank], at[rank], free[rank]
            length = len(word)
            while place < length:
                letter = word[place]
                needs, mine = source[letter], ends[letter]
                if needs >= 0:
                    theirs, k = ends[needs], len(mine)
                    if len(theirs) <= k:
                        waiting[needs].append(rank)
                        break
                    arrival = theirs[k] + delay[letter]
                    if arrival > now:
                        now = arrival
                now += cost[letter]
                mine.append(now)
                place += 1
                if waiting[letter]:
                    turns += waiting[letter]
                    waiting[letter].clear()
            at[rank], free[rank] = place, now
        if any(place < len(word) for place, word in zip(at, words, strict=True)):
            return None
        return Times(max(free), ends, free)

    def critical(
        self, words: Sequence[Word], times: Times, pick: Callable[[list[int]], int]
    ) -> list[tuple[int, int]]:
        """(rank, place in its word) of a chain that determines the elapsed time, last first.

        `pick` chooses among ranks, and among ways back where there are several.
        """
        counts: list[list[int]] = []
        index: dict[tuple[int, int], int] = {}
        for word in words:
            seen, row = [0] * len(self.cost), []
            for place, letter in enumerate(word):
                row.append(seen[letter])
                index[letter, seen[letter]] = place
                seen[letter] += 1
            counts.append(row)
        slack = _SLACK * max(1.0, times.elapsed)
        rank = pick([r for r, free in enumerate(times.free) if free >= times.elapsed - slack])
        place = len(words[rank]) - 1
        path: list[tuple[int, int]] = []
        while True:
            path.append((rank, place))
            letter, k = words[rank][place], counts[rank][place]
            begin = times.ends[letter][k] - self.cost[letter] - slack
            ways: list[tuple[int, int]] = []
            if place and times.ends[words[rank][place - 1]][counts[rank][place - 1]] >= begin:
                ways.append((rank, place - 1))
            needs = self.source[letter]
            if needs >= 0 and self.rank[needs] != rank and times.ends[needs][k] + self.delay[letter] >= begin:
                ways.append((self.rank[needs], index[needs, k]))
            if not ways:
                return path
            rank, place = ways[pick(list(range(len(ways))))]

    @property
    def work(self) -> float:
        """The most that a rank has to compute."""
        return self.microbatches * max(
            math.fsum(self.cost[letter] for letter in self.letters(rank)) for rank in range(self.ranks)
        )
