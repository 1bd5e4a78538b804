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
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np

from shunter.cluster.device import DeviceKind
from shunter.plan import dynamic, memory
from shunter.plan.choices import SCHEDULES, Choices, Floats, Question
from shunter.plan.estimate import LayerCost, costs, ends_of_step
from shunter.plan.practice import HALVES, RECOMPUTE
from shunter.plan.score import Prediction, placement_of, predict, stage_of
from shunter.plan.space import grids
from shunter.plan.strategies import AGAIN, ASIDE, KEEP
from shunter.plan.turning import turn

MOST = 6  # grids that one programme chooses from
BOUNDS, STEP = 8, 1 / 128  # on what is there for one layer at a time, that are tried; in shares of the room
TRIES = 4  # with less room, where what is there for one layer at a time was underrated
GAIN = 0.002  # a share of a step that is not worth layers that differ
ENDS = 3  # grids of embedding and head, besides the layers', that one frame is solved with
LEANER = 0.005  # a share of the room that is worth a slower one of these


def best_apart(question: Question, scored: Sequence[Prediction], room: float, looks: int) -> list[Prediction]:
    """Layouts whose layers, or ends, differ, faster than the best of those that were scored (best first) by
    GAIN.

    looks: of these, with other stages, schedule or micro-batches each, how many lend their frame.
    """
    found: list[Prediction] = []
    limit = (1 - GAIN) * min(each.seconds for each in scored)
    seen: set[tuple[int, ...]] = set()
    for each in scored:
        choice = each.choice
        frame = *(int(part[0]) for part in (choice.pp, choice.schedule, choice.chunks)), each.microbatches
        if frame in seen or len(seen) == looks:
            continue
        seen.add(frame)
        better = apart(question, each, room)
        if better is not None and (better.own or better.ends is not None) and better.seconds < limit:
            found.append(better)
    return found


def apart(question: Question, base: Prediction, room: float) -> Prediction | None:
    """The layout of `base` with the best degrees of each layer, and of embedding and head; None where there
    is one grid to choose from, or nothing fits."""
    programme = Programme(question, base)
    found = [programme.solve(room, ends) for ends in (None, *programme.ends_worth_a_look(room))]
    return min((each for each in found if each is not None), key=lambda it: it.seconds, default=None)


@dataclass(frozen=True)
class Way:
    """What a layer may have: number of its grid, and what becomes of its inside. size: bytes that it adds to
    a rank; passing: those that are there for one such layer at a time."""

    grid: int
    inside: int
    size: float
    passing: float


class Programme:
    """grids: of one layer, the base's first."""

    def __init__(self, question: Question, base: Prediction) -> None:
        name = SCHEDULES[base.choice.schedule[0]]
        kind = "layer" if question.practice.offers and name not in HALVES else "none"
        again = np.array([RECOMPUTE.index(kind)])
        self.question, self.bounds, self.m = question, base.bounds, base.microbatches
        self.choice = replace(base.choice, recompute=again)
        self.pp = int(self.choice.pp[0])
        self.placement = placement_of(name, self.pp, int(self.choice.chunks[0]))
        self.device = question.fabric.kind(0, int(self.choice.stage_ranks[0]))
        self.every = every = _choices(question, self.choice)
        self.insides: tuple[int, ...] = (KEEP,)
        if kind == "layer":
            aside = costs(question, every.take([0]), self.device).dense.aside is not None
            self.insides = (KEEP, AGAIN, ASIDE) if aside else (KEEP, AGAIN)
        self.many = every.take(self._worth_a_look(every))
        count = len(self.many)
        each = [self.many.take([number]) for number in range(count)]
        self.turns = np.array([[2 * self.m * turn(question, a, b) for b in each] for a in each])

    def solve(self, room: float, ends: Choices | None = None) -> Prediction | None:
        """The best of what was found for `room` bytes, as the whole layout's prediction. ends: of embedding
        and head, where they are not the base's."""
        if len(self.many) == 1 and ends is None:
            return None
        less = 0.0
        for _ in range(TRIES):
            found = self._found(room - less, ends)
            if found is None:
                return None
            if found.fullest <= room:
                return found
            less += found.fullest - room
        return None

    def ends_worth_a_look(self, room: float) -> list[Choices]:
        """Grids of embedding and head that may be better than the base's: quicker, or leaner by LEANER. None
        that another is as quick and as lean as; of many the quickest, the leanest and one between."""
        many = _ends(self.every)
        if SCHEDULES[self.choice.schedule[0]] == "zbv" and self.question.spec.tied:
            many = many.take(many.fsdp == 1)  # as in `plan.space`
        seconds, size = self._ends_costs(many)  # the base's own is the first
        kept: list[int] = []
        for number in sorted(range(1, len(many)), key=lambda n: (seconds[n], size[n])):
            better = seconds[number] < seconds[0] or size[number] < size[0] - LEANER * room
            if better and all(size[number] < size[other] for other in kept):
                kept.append(number)
        few = {round(n * (len(kept) - 1) / (ENDS - 1)) for n in range(ENDS)} if kept else set()
        return [many.take([kept[number]]) for number in sorted(few)]

    def _ends_costs(self, many: Choices) -> tuple[Floats, Floats]:
        """Of embedding and head under each grid, seconds of a step, with turns from and to the base's, and
        bytes of the fuller of their ranks without layers."""
        it, one = self.question, np.ones(len(many))
        found = costs(it, many, self.device)
        seconds = (
            found.embedding.forward + found.embedding.backward + found.head.forward + found.head.backward
        )
        seconds = seconds + 4 * found.messages.end + (1 if it.spec.tied else 2) * found.gather_end
        seconds = self.m * seconds + ends_of_step(it, many, found, 0 * one, 0 * one, 0 * one, self.device)
        each = [many.take([number]) for number in range(len(many))]
        turned = [turn(it, self.choice, other) + turn(it, other, self.choice) for other in each]
        ranks = {self.placement[0], self.placement[-1]}
        bare = [self._bare_apart(rank, many) for rank in ranks]
        return seconds + 2 * self.m * np.array(turned), np.maximum.reduce(bare)

    def _found(self, room: float, ends: Choices | None) -> Prediction | None:
        layers = self.question.spec.num_layers
        grid, inside = [0] * layers, [KEEP] * layers
        for rank in range(self.pp):
            chosen = self._rank(rank, room, ends)
            if chosen is None:
                return None
            for number, way in chosen.items():
                grid[number], inside[number] = way.grid, way.inside
        base, most = self.choice, 0
        if self.pp == 1 and grid.count(most := max(set(grid), key=grid.count)) > grid.count(0):
            # Between stages nothing is sent: the layout is that of most layers, and what was its own is
            # embedding's and head's.
            ends = self.choice if ends is None else ends
            base = self.many.take([most])
        else:
            most = 0
        if ends is not None:
            ends = None if len(_ends(_both(base, ends))) == 1 else _ends(ends)
        own = {number: self.many.take([it]) for number, it in enumerate(grid) if it != most}
        return predict(self.question, base, room, strategies=inside, cut=self.bounds, own=own, ends=ends)

    def _rank(self, rank: int, room: float, ends: Choices | None) -> dict[int, Way] | None:
        """Of each layer of a rank of the pipeline."""
        stages = [stage for stage, holder in enumerate(self.placement) if holder == rank]
        numbers = [n for stage in stages for n in range(self.bounds[stage], self.bounds[stage + 1])]
        firsts = {self.bounds[stage] for stage in stages}
        each = int(self.choice.stage_ranks[0])
        device = self.question.fabric.kind(rank * each, (rank + 1) * each)
        experts = self.question.spec.experts
        sorts = [experts is not None and experts.inside(n) for n in numbers]
        ways = {sort: self._ways(rank, sort) for sort in set(sorts)}
        times = {sort: self._seconds(ways[sort], sort, device) for sort in ways}
        size = np.array([[way.size for way in ways[sort]] for sort in sorts])
        seconds = np.array([times[sort] for sort in sorts])
        at = np.array([way.grid for way in ways[sorts[0]]])
        straight = self.turns[np.ix_(at, at)]
        through = self.turns[at, 0][:, None] + self.turns[0, at][None, :]
        change = np.array([through if n in firsts else straight for n in numbers])
        seconds[0] += self._turned(ends if 0 in stages else None, out=False)[at]
        seconds[-1] += self._turned(ends if len(self.placement) - 1 in stages else None, out=True)[at]
        passing = np.max([[way.passing for way in found] for found in ways.values()], axis=0)
        may = self._aside(ways[sorts[0]], rank, device)
        chosen = _least(size, seconds, change, passing, room - self._bare(rank, ends), may)
        if not chosen:
            return None
        return {n: ways[sort][it] for n, sort, it in zip(numbers, sorts, chosen, strict=True)}

    def _turned(self, ends: Choices | None, *, out: bool) -> Floats:
        """Seconds of a step in which hidden states come from embedding, or a message, under each grid of a
        layer, or go (`out`) to the head, or into one."""
        if ends is None:
            return self.turns[:, 0] if out else self.turns[0]
        each = [self.many.take([number]) for number in range(len(self.many))]
        pairs = [(it, ends) if out else (ends, it) for it in each]
        return np.array([2 * self.m * turn(self.question, *pair) for pair in pairs])

    def _aside(self, ways: Sequence[Way], rank: int, device: DeviceKind) -> list[int]:
        """Numbers of the ways that a layer may have: none is put aside where the host lacks room for all."""
        like = self._like(rank)
        layers = float(like.dense[0] + like.mixtures[0])
        most = memory.most_aside(self.question, self.choice, device, like.flight)
        return [number for number, way in enumerate(ways) if way.inside != ASIDE or most[0] >= layers]

    def _like(self, rank: int) -> memory.Stage:
        """A rank of the pipeline that keeps all of its layers."""
        kept = [KEEP] * self.question.spec.num_layers
        return stage_of(self.question, self.choice, self.bounds, kept, self.placement, rank, self.m)

    def _ways(self, rank: int, mixture: bool) -> list[Way]:
        """All that a layer of one sort may have on a rank of the pipeline."""
        found = []
        for inside in self.insides:
            many = [_total(self._bytes(rank, count, mixture, inside)) for count in (2, 3)]
            none = self._still(self._bytes(rank, 0, mixture, KEEP))
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
            self._like(rank).flight * one,
            one * (inside == AGAIN and count > 0),
            one * (inside == ASIDE and count > 0),
        )
        return memory.stage_bytes(self.question, self.many, stage, end=False)

    def _bare(self, rank: int, ends: Choices | None) -> float:
        """Bytes of a rank without its layers."""
        return float(self._bare_apart(rank, self.choice if ends is None else ends)[0])

    def _bare_apart(self, rank: int, ends: Choices) -> Floats:
        """The same under each grid of embedding and head."""
        stage, one = self._like(rank), np.ones(len(ends))
        mine = memory.Stage(*(one * getattr(stage, each.name) for each in fields(memory.Stage)))
        mine = memory.ends_alone(mine)
        return self._still(memory.stage_bytes(self.question, ends, mine, end=False))

    def _still(self, parts: dict[str, Floats]) -> Floats:
        """All but what is there for a moment, which is one layer's, of whatever grid."""
        return _total(parts) - parts["passing"] * (1 + self.question.coefficients["margin"])

    def _seconds(self, ways: Sequence[Way], mixture: bool, device: DeviceKind) -> Floats:
        """Of a step, of one layer with each of the ways."""
        found = costs(self.question, self.many, device)
        part = found.mixture if mixture else found.dense
        one = np.ones(len(self.many))
        ends = ends_of_step(
            self.question, self.many, found, one * (not mixture), one * mixture, part.backward.both, device,
            layers_only=True,
        )  # fmt: skip
        return np.array([self.m * _layer(part, way) + ends[way.grid] for way in ways])

    def _worth_a_look(self, every: Choices) -> list[int]:
        """Numbers of the grids that may be best for some layer, the base's first.

        Left out is what another is no slower and no larger than, that changes ranks at least as little: one
        with the same tokens on the same ranks, or with the base's.
        """
        question, many = self.question, every
        found = costs(question, many, self.device)
        one = np.ones(len(many))
        mixture = question.spec.experts is not None
        part = found.mixture if mixture else found.dense
        ends = ends_of_step(
            question, many, found, one * (not mixture), one * mixture, part.backward.both, self.device,
            layers_only=True,
        )  # fmt: skip
        seconds = self.m * (part.forward.both + part.backward.both) + ends
        self.many = many
        size = _total(self._bytes(0, 3, mixture, KEEP)) - _total(self._bytes(0, 2, mixture, KEEP))
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


def _ends(every: Choices) -> Choices:
    """Each set of degrees that embedding and head may have once; the first one's first."""
    dense = np.array([getattr(every, axis) for axis in ("dp", "fsdp", "cp", "tp")]).T
    _, first = np.unique(dense, axis=0, return_index=True)
    many = every.take(np.sort(first))
    one = np.ones_like(many.ep)
    return replace(many, ep=one, etp=one)


def _both(one: Choices, other: Choices) -> Choices:
    return Choices(
        *(np.concatenate([getattr(each, part.name) for each in (one, other)]) for part in fields(Choices))
    )


def _choices(question: Question, choice: Choices) -> Choices:
    """The layout's frame with each grid over the ranks of its stages that shares its rows out evenly; its own
    first."""
    own, rows = choice.grid(0), int(choice.rows[0] * choice.data[0])
    rest = [int(part[0]) for part in (choice.schedule, choice.chunks, choice.recompute)]
    degrees: list[tuple[int, ...]] = [(own.pp, own.dp, own.fsdp, own.cp, own.tp, own.ep, own.etp)]
    degrees += [each for each in grids(question, {"pp": own.pp}) if each != degrees[0]]
    lines = [
        [*each, rows // (each[1] * each[2]), *rest] for each in degrees if rows % (each[1] * each[2]) == 0
    ]
    many = Choices.of(np.array(lines, dtype=np.int64))
    if (profile := question.profile) is not None:  # which tells nothing of much larger micro-batches
        most = np.array([profile.most(tp) for tp in many.tp.tolist()])
        many = many.take(many.rows / many.cp <= most)
    return many


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


def _layer(part: LayerCost, way: Way) -> float:
    seconds = float((part.forward.both + part.backward.both)[way.grid])
    if way.inside == AGAIN:
        seconds += float(part.again.both[way.grid])
    elif way.inside == ASIDE and part.aside is not None:
        seconds += float(part.aside[0][way.grid] + part.aside[1][way.grid])
    return seconds


def _total(parts: dict[str, Floats]) -> Floats:
    return memory.total(parts)
