"""Which device does what: orders of a cluster's devices for a layout, tried and judged.

Devices of a node that share a stage stay together: what is placed are such units. Orders come from Holmes
(types of NICs and devices one after the other, arXiv 2312.03549), from trying all or annealing by Pipette's
formula (arXiv 2405.18093), and for few units from a proof. Of the best by formula the event simulator says
which it is, over the link of each pair, with layers cut by speed and memory. Imports without torch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, permutations
from typing import Any

import numpy as np

from shunter.cluster.cluster import Cluster
from shunter.config.errors import MissingExtra, ShunterError
from shunter.plan import holmes, placement
from shunter.plan.choices import Choices, Question
from shunter.plan.estimate import Costs as RankCosts
from shunter.plan.estimate import Estimate
from shunter.plan.memory import held
from shunter.plan.score import Prediction, predict
from shunter.plan.sited import Grounds

FEW = 24  # orders of which all are simulated
ALL = 7  # units of which all orders are tried
FIRST_STEPS, STEPS = 300, 4000  # of annealing, of each layout and of the best ones
SIMULATED = 6  # orders of a layout that are simulated, of the best by formula
LOOKS, LOOKS_EACH = 32, 5  # of layouts that are placed, one in so many is placed with care
MOST_TYPES = 3  # of devices of which all orders are tried
GRID = ("pp", "tp", "dp", "fsdp", "cp", "ep", "etp", "recompute", "schedule")
TRIES, ALIKE = 10, 3  # layouts that do not fit, for one that does, and of those that differ in rows alone
LEANEST = 200  # layouts that are placed until one fits, where no finalist does
NEAR = 3  # orders whose cut is improved
SMALL = 4_000  # nodes of a program that is simulated again and again to move single layers
PROOF, PATIENCE = 5.0, 60.0  # CP-SAT's count of its work, and seconds, after which it gives up
IMPOSSIBLE = 1e12  # seconds of an order whose devices have no memory for the layers


class Ground(Grounds):
    """As `Grounds`, with what only a search needs: units, and a formula that is quick to say.

    Seconds by formula: the slowest stage for each micro-batch, every other one once; Pipette's round trips of
    messages; the slowest ring of gradients.
    """

    def __init__(self, question: Question, choice: Choices, room: float) -> None:
        super().__init__(question, choice, room)
        cluster, block = self.land.cluster, question.fabric.block
        self.unit = math.gcd(block, int(choice.tp[0]) if self.land.fine else self.each)
        self.units = [tuple(range(at, at + self.unit)) for at in range(0, cluster.world, self.unit)]
        self.rows = self.each // self.unit
        alike: dict[tuple[object, ...], int] = {}  # units whose devices compute alike
        self.alike = [alike.setdefault(self._class(unit), number) for number, unit in enumerate(self.units)]
        self.kinds = {number: self.stage(self._same(self.units[number]))[1] for number in set(self.alike)}
        self.slowness = {number: _layer_seconds(cost) for number, cost in self.kinds.items()}
        self.memory = [min(room, cluster.devices[unit[0]].spec.memory) for unit in self.units]
        self._computed: dict[tuple[tuple[int, float], ...], float] = {}
        links = self.land.matrix(self.unit)
        known = question.coefficients
        trips = self.chunks * max(self.microbatches / self.pp, 1.0)
        size = self._gradients() / self.rows / max(1, self.unit // int(choice.tp[0]))  # of a turn
        turns = 2 * (self.rows - 1)
        count = range(len(self.units))

        def both(a: int, b: int, size: float, share: float) -> tuple[float, float]:
            """Seconds there and back."""
            there, back = links[a][b], links[b][a]
            return there[0] + size / (there[1] * share), back[0] + size / (back[1] * share)

        def of_all(seconds: Callable[[int, int], float]) -> list[list[float]]:
            return [[seconds(a, b) if a != b else 0.0 for b in count] for a in count]

        self.hop = of_all(lambda a, b: trips * sum(both(a, b, self.message, known["links"])))
        self.ring = of_all(lambda a, b: turns * max(both(a, b, size, known.ring)))

    def _class(self, unit: tuple[int, ...]) -> tuple[object, ...]:
        """What decides how long a unit computes: its devices, and the links between them."""
        ranks = self.land.cluster.node(unit[0]).ranks
        group = self.land.cluster.group(unit[0])
        return (unit[0],) if self.land.fine else (group.device, group.inside, group.between, len(ranks))

    def _same(self, unit: tuple[int, ...]) -> tuple[int, ...]:
        """A stage of nothing but this unit, for what its devices compute: messages are counted apart."""
        return unit * self.rows

    def _gradients(self) -> float:
        """Bytes that a rank's ring carries in a step, as those of one all-reduce: gradients, and weights that
        are gathered."""
        question, choice = self.question, self.choice
        shape = held(question, choice)
        dense = float(shape.dense[0]) * question.spec.num_layers / self.pp + float(shape.end[0])
        size = question.practice.gradients * dense
        if int(choice.shards(question.practice)[0]) > 1:
            passes = 1.0 if self.pp > 1 else 2.0 * self.microbatches
            size = (size + passes * question.practice.gathered * dense) / 2
        return size

    def order(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Devices of all places. grid: unit of each, stage after stage."""
        return tuple(rank for unit in grid for rank in self.units[unit])

    def compute(self, grid: Sequence[int]) -> float:
        """Seconds that the slowest stage computes, over the step; IMPOSSIBLE where no cut fits."""
        key = tuple(
            (
                max(
                    (self.alike[unit] for unit in grid[begin : begin + self.rows]),
                    key=self.slowness.__getitem__,
                ),
                min(self.memory[unit] for unit in grid[begin : begin + self.rows]),
            )
            for begin in range(0, len(grid), self.rows)
        )
        if key not in self._computed:
            self._computed[key] = self._compute([self.kinds[kind] for kind, _ in key], [m for _, m in key])
        return self._computed[key]

    def _compute(self, each: Sequence[RankCosts], rooms: Sequence[float]) -> float:
        bounds = self.cut(each, tuple(rooms))
        if bounds is None:
            return IMPOSSIBLE
        took = [0.0] * self.pp
        for stage, rank in enumerate(self.placement):
            cost = each[rank]
            took[rank] += (bounds[stage + 1] - bounds[stage]) * _layer_seconds(cost)
            for there, end in ((stage == 0, cost.embedding), (stage == len(bounds) - 2, cost.head)):
                if there:
                    took[rank] += float(end.forward[0] + end.backward[0])
        return self.microbatches * max(took) + (sum(took) - max(took)) / self.chunks

    def value(self, grid: Sequence[int]) -> float:
        """Seconds by formula, without what no order changes."""
        rows, hop, ring = self.rows, self.hop, self.ring
        around = slowest = 0.0
        for row in range(rows):
            chain = grid[row::rows]
            total = 0.0
            for at in range(len(chain) - 1):
                total += hop[chain[at]][chain[at + 1]]
            if total > around:
                around = total
        if rows > 1:
            for begin in range(0, len(grid), rows):
                before = grid[begin + rows - 1]
                for unit in grid[begin : begin + rows]:
                    cost = ring[before][unit]
                    if cost > slowest:
                        slowest = cost
                    before = unit
        return self.compute(grid) + around + slowest

    def typed(self) -> list[tuple[int, ...]]:
        """Holmes's: types of NICs and devices one after the other, in every order of few types, else by
        speed both ways."""
        cluster = self.land.cluster
        types = list(dict.fromkeys(_type_of(cluster, rank) for rank in range(cluster.world)))
        tensor = int(self.choice.tp[0])
        speed = {
            _type_of(cluster, device.rank): max(rates.peak for rates in device.spec.flops.values())
            for device in cluster.devices
        }
        quick = sorted(types, key=lambda name: -speed[name])
        orders = list(permutations(types)) if len(types) <= MOST_TYPES else [tuple(quick), tuple(quick[::-1])]
        found: dict[tuple[int, ...], None] = {}
        for order in orders:
            try:
                it = holmes.arrange(
                    cluster, self.pp, self.each // tensor, tensor, order, strict=False, type_of=_type_of
                )
            except ShunterError:  # a fixed tensor degree that leaves nodes: types tell nothing then
                continue
            found[tuple(it.ranks[at] // self.unit for at in range(0, cluster.world, self.unit))] = None
        return list(found)

    def orders(self, careful: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Grids of units with how they were found, the best by formula first.

        At a first look: as the file has them, by type, and where there is one type alone, or with care, those
        that a search finds.
        """
        count = len(self.units)
        naive = tuple(range(count))
        typed = self.typed()
        found = dict.fromkeys((naive, *typed), "by type")
        found[naive] = "as the file has them"
        every = math.factorial(count) if count <= ALL else math.inf
        if careful and every <= FEW:
            for grid in self._apart(self._ranked(permutations(naive))):
                yield f"the best of all {every} orders", grid
            return
        if careful and count <= ALL:
            best = heapq.nsmallest(60, ((self.value(grid), grid) for grid in permutations(naive)))
            yield from ((f"the best of all {every:,} orders", grid) for _, grid in _distinct(best))
            return
        if count > 1 and (careful or len(typed) < 2):
            first = min(found, key=self.value)
            annealed = placement.anneal(
                self.value, count, steps=STEPS if careful else FIRST_STEPS, start=first
            )
            if annealed.value < self.value(first):
                found[annealed.grid] = "annealed"
        for _, grid in _distinct(self._ranked(found)):
            yield found[grid], grid

    def _apart(self, ranked: Sequence[tuple[float, tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """Without orders that only exchange units which nothing tells apart: the same kinds, as fast."""
        if self.land.cluster.description.pairs:
            return [grid for _, grid in ranked]
        found: dict[tuple[object, ...], tuple[int, ...]] = {}
        for value, grid in ranked:
            found.setdefault((f"{value:.9g}", *(self.alike[unit] for unit in grid)), grid)
        return list(found.values())

    def _ranked(self, grids: Iterable[tuple[int, ...]]) -> list[tuple[float, tuple[int, ...]]]:
        return sorted((self.value(grid), grid) for grid in grids)


def _distinct(ranked: Sequence[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
    """One grid of each value: those that only exchange what is equal differ in nothing. Those that cannot be
    are left out."""
    found: dict[str, tuple[float, tuple[int, ...]]] = {}
    for value, grid in ranked:
        if value < IMPOSSIBLE:
            found.setdefault(f"{value:.9g}", (value, grid))
    return list(found.values())


def _type_of(cluster: Cluster, rank: int) -> str:
    """NIC and kind of a device."""
    return f"{holmes.nic_of(cluster, rank)} {cluster.devices[rank].kind}"


def _layer_seconds(cost: RankCosts) -> float:
    """Of one layer and micro-batch, there and back."""
    part = cost.dense
    return float(part.forward.both[0] + part.backward.both[0] + part.again.both[0])


def scored(question: Question, choice: Choices, room: float, *, lean: bool = False) -> Prediction | None:
    """A layout's prediction, with its ranks placed at a first look where that matters. None where it does
    not fit. lean: all layers do what they can to hold less, though there is room."""
    if question.fabric.terrain is None:
        found = predict(question, choice, None if lean else room)
        return found if found.fits(room) else None
    ground = Ground(question, choice, room)
    for how, grid in ground.orders(careful=False):
        placed = ground.predict(ground.order(grid), how=how)
        if placed is not None:
            return placed
    return None


def again(question: Question, before: Prediction, room: float) -> Prediction | None:
    """The same layout with the same ranks for a question in which something else has changed."""
    known: dict[str, Any] = {}
    if before.own or before.ends is not None:
        known = {"strategies": before.strategies, "own": before.own, "ends": before.ends}
    if question.fabric.terrain is None or before.placed is None:
        found = predict(question, before.choice, room, cut=before.bounds if known else None, **known)
        return found if found.fits(room) else None
    ground = Grounds(question, before.choice, room)
    bounds = before.bounds if known else None
    return ground.predict(before.placed.order, bounds, before.placed.how, **known)


def improved(
    question: Question, found: Sequence[Prediction], room: float, looks: int = LOOKS
) -> list[Prediction]:
    """The predictions, best first, with the ranks of the best ones placed with care. looks: one in
    `LOOKS_EACH` of so many layouts is."""
    if question.fabric.terrain is None:
        return list(found)
    many = max(1, looks // LOOKS_EACH)
    careful = sorted((_careful(question, each, room) for each in found[:many]), key=lambda it: it.seconds)
    return [_finished(question, careful[0], room), *careful[1:], *found[many:]]


def _careful(question: Question, first: Prediction, room: float) -> Prediction:
    """The best by events of the best orders by formula, beside the file's own order."""
    ground = Ground(question, first.choice, room)
    best = first
    tried = 0
    for how, grid in ground.orders(careful=True):
        placed = ground.predict(ground.order(grid), how=how)
        tried += placed is not None
        if placed is not None and placed.seconds < best.seconds * (1 - 1e-9):
            best = placed
        if tried >= max(SIMULATED, FEW if math.factorial(len(ground.units)) <= FEW else 0):
            break
    naive = ground.predict(tuple(range(ground.land.cluster.world)), how="as the file has them")
    if naive is not None and naive.seconds <= best.seconds:
        best = naive
    assert best.placed is not None
    seconds = math.inf if naive is None else naive.seconds
    return replace(best, placed=replace(best.placed, naive=seconds))


def _finished(question: Question, best: Prediction, room: float) -> Prediction:
    """The best of all layouts: its order proven where that can be, and of it and the next best orders single
    layers moved while that helps; for a fair comparison in the file's order too."""
    ground = Ground(question, best.choice, room)
    best = _proven(ground, best)
    others = (ground.predict(ground.order(grid), how=how) for how, grid in ground.orders(careful=True))
    near = sorted((each for each in islice(others, SIMULATED) if each is not None), key=lambda it: it.seconds)
    best = min((_recut(ground, each) for each in (best, *near[:NEAR])), key=lambda it: it.seconds)
    naive = ground.predict(tuple(range(ground.land.cluster.world)), how="as the file has them")
    naive = None if naive is None else _recut(ground, naive)
    if naive is not None and naive.seconds <= best.seconds:
        best = naive
    assert best.placed is not None
    return replace(best, placed=replace(best.placed, naive=math.inf if naive is None else naive.seconds))


def _proven(ground: Ground, best: Prediction) -> Prediction:
    """By CP-SAT, where devices are of one kind, so that links alone decide, and there are few units."""
    count = len(ground.units)
    alike = len({*ground.slowness.values()}) == 1 and len({*ground.memory}) == 1
    if not ALL < count <= placement.MOST_PROVEN or not alike or best.placed is None:
        return best
    row_major = [stage * ground.rows + row for row in range(ground.rows) for stage in range(ground.pp)]
    grid = [best.placed.order[at] // ground.unit for at in range(0, ground.land.cluster.world, ground.unit)]
    try:
        found = placement.prove(
            ground.hop, [ground.ring] * ground.pp, [0.0] * ground.pp, ground.pp, 1.0,
            seconds=PATIENCE, work=PROOF, hint=[grid[at] for at in row_major],
        )  # fmt: skip
    except (MissingExtra, ShunterError):
        return best
    if not found.proven:
        return best
    back = [0] * count
    for unit, at in zip(found.grid, row_major, strict=True):
        back[at] = unit
    if ground.value(back) < ground.value(grid) * (1 - 1e-6):
        placed = ground.predict(ground.order(back), how="proven the best by formula")
        return best if placed is None or placed.seconds >= best.seconds else placed
    return replace(best, placed=replace(best.placed, how=f"{best.placed.how}, proven the best by formula"))


def _recut(ground: Ground, best: Prediction) -> Prediction:
    """Single layers moved from one stage to another as long as the simulated step gets shorter."""
    assert best.placed is not None
    stages = len(best.bounds) - 1
    if stages < 2 or 2 * stages * ground.microbatches > SMALL:
        return best
    how, order = best.placed.how, best.placed.order
    better = True
    while better:
        better = False
        for bounds in _moves(best.bounds):
            if not ground.fit(bounds, best.placed.rooms):
                continue
            other = ground.predict(order, bounds, how)
            if other is not None and other.seconds < best.seconds * (1 - 1e-9):
                best, better = other, True
                break
    return best


def _moves(bounds: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """One layer from a stage to another: the bounds between the two shift by one. Of many stages neighbours
    alone."""
    stages = len(bounds) - 1
    for a in range(stages):
        for b in range(a + 1, stages if stages <= 8 else min(a + 2, stages)):
            for shift in (1, -1):
                moved = [*bounds[: a + 1], *(at + shift for at in bounds[a + 1 : b + 1]), *bounds[b + 1 :]]
                if all(moved[at] < moved[at + 1] for at in range(stages)):
                    yield tuple(moved)


def looked_at(
    question: Question, choices: Choices, found: Estimate, order: np.ndarray, room: float, finalists: int
) -> list[Prediction]:
    """A first look at the layouts that a formula for the slowest device puts first (`order`), which it orders
    badly where devices differ: of each number of stages and tensor degree some that fit.

    Where none of these does, the first of those that need least memory.
    """
    fits: dict[tuple[int, ...], int] = {}
    tries: dict[tuple[int, ...], int] = {}
    looks: list[Prediction] = []
    most = max(1, finalists // 8)
    for index in order:
        one = tuple(int(getattr(choices, name)[index]) for name in GRID)
        key, alike = one[:2], one
        if fits.get(key, 0) >= most or tries.get(key, 0) >= TRIES * most or tries.get(alike, 0) >= ALIKE:
            continue
        prediction = scored(question, choices.take([int(index)]), room)
        tries[key], tries[alike] = tries.get(key, 0) + 1, tries.get(alike, 0) + 1
        if prediction is not None:
            fits[key] = fits.get(key, 0) + 1
            looks.append(prediction)
    if not looks:
        for index in order[np.argsort(found.bytes[order], kind="stable")][:LEANEST]:
            prediction = scored(question, choices.take([int(index)]), room)
            if prediction is not None:
                return [prediction]
    return looks
