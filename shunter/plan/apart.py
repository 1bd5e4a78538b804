"""Layers of a stage, embedding and head with degrees of their own: Galvatron's programme over layers, grids
and memory.

For each rank of the pipeline one programme (`plan.dynamic`; arXiv 2211.13878, section 4) chooses of every
layer its grid over the stage's ranks, and whether it keeps its inside, is computed again or put aside. A
layer's time is that of its micro-batches and what its gradients and its optimizer's state take at the end of
a step; where grids change, hidden states change ranks (`plan.turning`). What is sent between stages has the
grid that the programme is given: those of the best layouts with one grid for all. So have embedding and head,
or another over the same ranks: the programme is solved once for each that may be worth it, as Galvatron does.
Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import numpy as np

from shunter.plan import dynamic, memory
from shunter.plan.choices import Choices, Floats, Ints, Question
from shunter.plan.estimate import LayerCost, costs, ends_of_step
from shunter.plan.frame import GAIN, Frame, frames
from shunter.plan.score import Prediction
from shunter.plan.space import Fixed
from shunter.plan.strategies import AGAIN, ASIDE, KEEP
from shunter.plan.turning import turn

MOST = 6  # grids that one programme chooses from; where devices differ, of all stages twice as many
BOUNDS, STEP = 8, 1 / 128  # on what is there for one layer at a time, that are tried; in shares of the room
TRIES = 4  # with less room, where what is there for one layer at a time was underrated


def best_apart(
    question: Question, scored: Sequence[Prediction], room: float, looks: int, fixed: Fixed | None = None
) -> list[Prediction]:
    """Layouts whose layers, or ends, differ, faster than the best of those that were scored (best first) by
    GAIN.

    looks: of these, with other stages, schedule or micro-batches each, how many lend their frame. fixed: what
    each layer must have.
    """
    found: list[Prediction] = []
    limit = (1 - GAIN) * min(each.seconds for each in scored)
    for each in frames(scored, looks):
        better = apart(question, each, room, fixed)
        if better is not None and (better.own or better.ends is not None) and better.seconds < limit:
            found.append(better)
    return found


def apart(question: Question, base: Prediction, room: float, fixed: Fixed | None = None) -> Prediction | None:
    """The layout of `base` with the best degrees of each layer, and of embedding and head; None where there
    is one grid to choose from, or nothing fits."""
    programme = Programme(question, base, fixed, room)
    found = [programme.solve(room, ends) for ends in (None, *programme.ends_worth_a_look(room))]
    best = min((each for each in found if each is not None), key=lambda it: it.seconds, default=None)
    return best if best is None or best.placed is None else programme.beside_the_file_s_order(best, room)


@dataclass(frozen=True)
class Way:
    """What a layer may have: number of its grid, and what becomes of its inside. size: bytes that it adds to
    a rank; passing: those that are there for one such layer at a time."""

    grid: int
    inside: int
    size: float
    passing: float


@dataclass(frozen=True)
class Task:
    """What a rank of the pipeline chooses from. numbers: of its layers; each: the ways of each. size, seconds
    (layers, ways), change (layers, ways, ways), passing (ways): as `_least` has them, but for what comes from
    the rank before and goes to the next. at: grid of each way. may: numbers of the ways it may have."""

    numbers: list[int]
    each: list[list[Way]]
    size: Floats
    seconds: Floats
    change: Floats
    passing: Floats
    at: Ints
    may: list[int]


class Programme(Frame):
    """many: grids of a layer, the base's first. insides: what may become of its inside."""

    def __init__(
        self, question: Question, base: Prediction, fixed: Fixed | None = None, room: float = float("inf")
    ) -> None:
        super().__init__(question, base, fixed, room)
        self.insides: tuple[int, ...] = (KEEP,)
        if self.free:
            first = self.every.take([0])
            each = [costs(self.asked[rank], first, self.devices[rank]) for rank in self.sorts]
            aside = all(found.dense.aside is not None for found in each)
            self.insides = (KEEP, AGAIN, ASIDE) if aside else (KEEP, AGAIN)
        self.many = self.every.take(self._worth_a_look())
        self._turns: dict[int, Floats] = {}
        self._tasks: dict[int, Task] = {}
        self._chosen: dict[tuple[object, ...], dict[int, Way] | None] = {}

    def turns(self, rank: int) -> Floats:
        """Seconds of a step in which hidden states change ranks from each grid to each other one."""
        it = self.asked[rank]
        if id(it) not in self._turns:
            each = [self.many.take([number]) for number in range(len(self.many))]
            self._turns[id(it)] = np.array([[2 * self.m * turn(it, a, b) for b in each] for a in each])
        return self._turns[id(it)]

    def solve(self, room: float, ends: Choices | None = None) -> Prediction | None:
        """The best of what was found for `room` bytes, as the whole layout's prediction. ends: of embedding
        and head, where they are not the base's."""
        if len(self.many) == 1 and ends is None:
            return None
        less = 0.0
        for _ in range(TRIES):
            found = self._found(room, less, ends)
            if found is None:
                return None
            over = max(
                sum(parts.values()) - min(room, most)
                for parts, most in zip(found.bytes, self.rooms, strict=True)
            )
            if over <= 0:
                return found
            less += over
        return None

    def _found(self, room: float, less: float, ends: Choices | None) -> Prediction | None:
        layers = self.question.spec.num_layers
        grid, inside = [0] * layers, [KEEP] * layers
        for rank in range(self.pp):
            chosen = self._rank(rank, min(room, self.rooms[rank]) - less, ends)
            if chosen is None:
                return None
            for number, way in chosen.items():
                grid[number], inside[number] = way.grid, way.inside
        base, most = self.choice, 0
        mine = max(set(grid), key=grid.count)
        if self.pp == 1 and grid.count(mine) > grid.count(0) and "microbatch" not in self.fixed:
            # Between stages nothing is sent: the layout is that of most layers, and what was its own is
            # embedding's and head's. But a fixed micro-batch is the layout's.
            most = mine
            ends = self.choice if ends is None else ends
            base = self.many.take([most])
        if ends is not None:
            one = np.ones_like(ends.ep)
            ends = replace(ends, ep=one, etp=one)
            ends = None if _degrees(ends) == _degrees(base) else ends
        own = {number: self.many.take([it]) for number, it in enumerate(grid) if it != most}
        return self.whole(base, inside, own, ends, room)

    def _rank(self, rank: int, room: float, ends: Choices | None) -> dict[int, Way] | None:
        """Of each layer of a rank of the pipeline."""
        first, last = rank == self.placement[0], rank == self.placement[-1]
        mine = ends if first or last else None
        key = rank, room, None if mine is None else mine.grid(0)
        if key in self._chosen:
            return self._chosen[key]
        task = self._task(rank)
        seconds = task.seconds.copy()
        seconds[0] += self._turned(rank, mine if first else None, out=False)[task.at]
        seconds[-1] += self._turned(rank, mine if last else None, out=True)[task.at]
        chosen = _least(task.size, seconds, task.change, task.passing, room - self.bare(rank, mine), task.may)
        found = zip(task.numbers, task.each, chosen, strict=True) if chosen else None
        self._chosen[key] = None if found is None else {n: ways[it] for n, ways, it in found}
        return self._chosen[key]

    def _task(self, rank: int) -> Task:
        if (known := self._tasks.get(rank)) is not None:
            return known
        stages = [stage for stage, holder in enumerate(self.placement) if holder == rank]
        numbers = [n for stage in stages for n in range(self.bounds[stage], self.bounds[stage + 1])]
        firsts = {self.bounds[stage] for stage in stages}
        experts = self.question.spec.experts
        sorts = [experts is not None and experts.inside(n) for n in numbers]
        ways = {sort: self._ways(rank, sort) for sort in set(sorts)}
        times = {sort: self._seconds(rank, ways[sort], sort) for sort in ways}
        at = np.array([way.grid for way in ways[sorts[0]]])
        turns = self.turns(rank)
        straight = turns[np.ix_(at, at)]
        through = turns[at, 0][:, None] + turns[0, at][None, :]
        found = self._tasks[rank] = Task(
            numbers,
            [ways[sort] for sort in sorts],
            np.array([[way.size for way in ways[sort]] for sort in sorts]),
            np.array([times[sort] for sort in sorts]),
            np.array([through if n in firsts else straight for n in numbers]),
            np.max([[way.passing for way in found] for found in ways.values()], axis=0),
            at,
            self._aside(ways[sorts[0]], rank),
        )
        return found

    def _turned(self, rank: int, ends: Choices | None, *, out: bool) -> Floats:
        """Seconds of a step in which hidden states come from embedding, or a message, under each grid of a
        layer, or go (`out`) to the head, or into one."""
        if ends is None:
            turns = self.turns(rank)
            return turns[:, 0] if out else turns[0]
        each = [self.many.take([number]) for number in range(len(self.many))]
        pairs = [(it, ends) if out else (ends, it) for it in each]
        return np.array([2 * self.m * turn(self.asked[rank], *pair) for pair in pairs])

    def _aside(self, ways: Sequence[Way], rank: int) -> list[int]:
        """Numbers of the ways that a layer may have: none is put aside where the host lacks room for all."""
        like = self.like(rank)
        layers = float(like.dense[0] + like.mixtures[0])
        most = memory.most_aside(self.asked[rank], self.choice, self.devices[rank], like.flight)
        return [number for number, way in enumerate(ways) if way.inside != ASIDE or most[0] >= layers]

    def _ways(self, rank: int, mixture: bool) -> list[Way]:
        """All that a layer of one sort may have on a rank of the pipeline."""
        found = []
        for inside in self.insides:
            many = [memory.total(self._bytes(rank, count, mixture, inside)) for count in (2, 3)]
            none = self.still(rank, self._bytes(rank, 0, mixture, KEEP))
            size = many[1] - many[0]
            passing = np.maximum(many[1] - 3 * size - none, 0.0)
            for grid in range(len(self.many)):
                found.append(Way(grid, inside, float(size[grid]), float(passing[grid])))
        return found

    def _bytes(self, rank: int, count: int, mixture: bool, inside: int) -> dict[str, Floats]:
        """Of a rank with so many layers alike under each grid, and nothing else, until the last backward is
        done: what is there then does not grow with the layers."""
        one = np.ones(len(self.many))
        stage = memory.Stage(
            count * one * (not mixture),
            count * one * mixture,
            0 * one,
            0 * one,
            self.like(rank).flight * one,
            one * (inside == AGAIN and count > 0),
            one * (inside == ASIDE and count > 0),
        )
        return memory.stage_bytes(self.asked[rank], self.many, stage, end=False)

    def _seconds(self, rank: int, ways: Sequence[Way], mixture: bool) -> Floats:
        """Of a step, of one layer with each of the ways."""
        found = costs(self.asked[rank], self.many, self.devices[rank])
        part = found.mixture if mixture else found.dense
        one = np.ones(len(self.many))
        ends = ends_of_step(
            self.asked[rank], self.many, found, one * (not mixture), one * mixture, part.backward.both,
            self.devices[rank], layers_only=True,
        )  # fmt: skip
        return np.array([self.m * _layer(part, way) + ends[way.grid] for way in ways])

    def _worth_a_look(self) -> list[int]:
        """Numbers of the grids that may be best for some layer, the base's first; where devices differ, of
        each kind of stage.

        Left out is what another is no slower and no larger than, that changes ranks at least as little: one
        with the same tokens on the same ranks, or with the base's.
        """
        each = [self._quick_or_lean(rank, self.every) for rank in self.sorts]
        found = (number for some in zip_longest(*each) for number in some if number is not None)
        return list(dict.fromkeys(found))[: MOST if len(each) == 1 else 2 * MOST]

    def _quick_or_lean(self, rank: int, many: Choices) -> list[int]:
        question, device = self.asked[rank], self.devices[rank]
        found = costs(question, many, device)
        one = np.ones(len(many))
        mixture = question.spec.experts is not None
        part = found.mixture if mixture else found.dense
        ends = ends_of_step(
            question, many, found, one * (not mixture), one * mixture, part.backward.both, device,
            layers_only=True,
        )  # fmt: skip
        seconds = self.m * (part.forward.both + part.backward.both) + ends
        self.many = many
        two, three = (memory.total(self._bytes(rank, count, mixture, KEEP)) for count in (2, 3))
        size = three - two
        tokens = [(int(many.data[n]), int(many.cp[n]), int(many.tp[n])) for n in range(len(many))]
        kept = [0]
        for n in sorted(range(1, len(many)), key=lambda n: float(seconds[n])):
            beaten = any(
                seconds[o] <= seconds[n] and size[o] <= size[n] and tokens[o] in (tokens[n], tokens[0])
                for o in kept
            )
            if not beaten and len(kept) < MOST:
                kept.append(n)
        return kept


def _least(
    size: Floats, seconds: Floats, change: Floats, passing: Floats, room: float, may: Sequence[int]
) -> list[int]:
    """Numbers of ways of each layer, in the least time that fits; empty where nothing does.

    size, seconds: (layers, ways). change: (layers, ways, ways). passing: of each way, bytes that are there
    for a layer at a time. What is best may do without the ways that have most of these: so it is looked for
    with several bounds on them.
    """
    found: list[tuple[float, list[int]]] = []
    if room <= 0:
        return []
    passing = np.ceil(passing / (STEP * room) - 1e-6) * STEP * room
    bounds = sorted({float(passing[way]) for way in may})
    few = [bounds[round(n * (len(bounds) - 1) / (BOUNDS - 1))] for n in range(BOUNDS)]
    for most in dict.fromkeys(few):
        mine = [way for way in may if passing[way] <= most]
        alone = min(mine, key=lambda way: float(seconds[:, way].sum()))
        if size[:, alone].sum() + most <= room and not change[:, alone, alone].any():
            chosen = [alone] * len(size)  # without a bound on memory layers need not differ
        else:
            some = dynamic.solve(
                size[:, mine], seconds[:, mine], change[np.ix_(range(len(size)), mine, mine)], room - most
            )
            chosen = [mine[number] for number in some]
        if chosen:
            turned = sum(change[n, a, b] for n, (a, b) in enumerate(pairwise(chosen), 1))
            found.append((float(sum(seconds[n, way] for n, way in enumerate(chosen)) + turned), chosen))
    return min(found)[1] if found else []


def _degrees(choice: Choices) -> tuple[int, ...]:
    """Those that embedding and head have."""
    return tuple(int(getattr(choice, axis)[0]) for axis in ("dp", "fsdp", "cp", "tp"))


def _layer(part: LayerCost, way: Way) -> float:
    seconds = float((part.forward.both + part.backward.both)[way.grid])
    if way.inside == AGAIN:
        seconds += float(part.again.both[way.grid])
    elif way.inside == ASIDE and part.aside is not None:
        seconds += float(part.aside[0][way.grid] + part.aside[1][way.grid])
    return seconds
