"""A layout on devices in a given order: each stage with its own devices and links. Imports without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shunter.cluster.device import DeviceKind
from shunter.config.errors import ShunterError
from shunter.plan import communication
from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.plan.cuts import cut_alike
from shunter.plan.estimate import Costs as RankCosts
from shunter.plan.estimate import costs
from shunter.plan.fabric import Fabric
from shunter.plan.score import Placed, Prediction, Site, _bytes, _cut, _part, placement_of, predict
from shunter.plan.strategies import AGAIN, KEEP
from shunter.plan.terrain import Terrain, Wire
from shunter.schedule.costs import Links

MOST_LINES = 4  # pipelines that are simulated of those with different links: the slowest ones

ALONE = 0.0, 1e300  # who has nobody to talk to waits for nobody

Wires = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class StageFabric(Fabric):
    """The devices of one stage, in the order of its places. slowest: of them."""

    ranks: tuple[int, ...]
    land: Terrain
    slowest: DeviceKind

    def kind(self, begin: int, end: int) -> DeviceKind:
        return self.slowest

    def wire(self, stride: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> Wires:
        return self._each(self.land.rings, stride, count)

    def hop(self, stride: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> Wires:
        """Within the stage; messages between stages are `Ordered.links`."""
        return self._each(self.land.hops, stride, np.where(stride * count > len(self.ranks), 1, count))

    def _each(
        self,
        among: Callable[[tuple[int, ...], int, int], Wire],
        stride: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
    ) -> Wires:
        pairs = zip(*(each.tolist() for each in np.broadcast_arrays(stride, count)), strict=True)
        found = [among(self.ranks, a, n) if n > 1 else ALONE for a, n in pairs]
        return np.array([wire[0] for wire in found]), np.array([wire[1] for wire in found])


class Grounds:
    """One layout of a question on a cluster whose devices or links differ: what any order of its devices
    takes. What several orders have in common is worked out once.

    room: bytes that no rank may exceed, whatever its device has.
    """

    def __init__(self, question: Question, choice: Choices, room: float) -> None:
        assert question.fabric.terrain is not None
        assert len(choice) == 1
        self.question, self.choice, self.room = question, choice, room
        self.land = question.fabric.terrain
        self.pp, self.each = int(choice.pp[0]), int(choice.stage_ranks[0])
        self.microbatches = int(choice.microbatches(question.batch)[0])
        self.schedule, self.chunks = SCHEDULES[choice.schedule[0]], int(choice.chunks[0])
        self.placement = placement_of(self.schedule, self.pp, self.chunks)
        self.message = float(communication.message(question, choice)[0])
        self._stages: dict[tuple[int, ...], tuple[Question, RankCosts]] = {}
        self._bytes: dict[tuple[int, ...], float] = {}
        self._cuts: dict[Any, tuple[int, ...] | None] = {}

    def stages(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Devices of each stage."""
        return [tuple(order[at : at + self.each]) for at in range(0, len(order), self.each)]

    def stage(self, ranks: tuple[int, ...]) -> tuple[Question, RankCosts]:
        """The question over the links of these devices, and what a layer takes on them."""
        if ranks not in self._stages:
            devices = [self.land.cluster.devices[rank] for rank in ranks]
            slowest = min(devices, key=lambda device: max(rates.peak for rates in device.spec.flops.values()))
            base = self.question.fabric
            fabric = StageFabric(
                base.name, base.world, base.levels, (slowest.spec,), base.block,
                ranks=ranks, land=self.land, slowest=slowest.spec,
            )  # fmt: skip
            asked = replace(
                self.question, fabric=fabric, coefficients=self.question.coefficients.on(slowest.kind)
            )
            self._stages[ranks] = asked, costs(asked, self.choice, slowest.spec)
        return self._stages[ranks]

    def rooms(self, order: Sequence[int]) -> tuple[float, ...]:
        """Bytes of each stage's smallest device."""
        devices = self.land.cluster.devices
        return tuple(
            min(self.room, *(devices[rank].spec.memory for rank in ranks)) for ranks in self.stages(order)
        )

    def cut(self, each: Sequence[RankCosts], rooms: tuple[float, ...]) -> tuple[int, ...] | None:
        """Bounds of the stages by the speed of their devices, none with more layers than there is memory for.
        each: by rank of the pipeline. None where no cut fits."""
        spec, placement = self.question.spec, self.placement
        by_stage = [each[rank] for rank in placement]
        if spec.experts is not None and len({spec.experts.inside(n) for n in range(spec.num_layers)}) > 1:
            bounds = tuple(_cut(self.question, by_stage, placement))
            return bounds if self.fit(bounds, rooms) else None
        seconds = []
        for cost in by_stage:
            layer = _part(self.question, cost, spec.num_layers - 1)
            seconds.append(float(layer.forward.both[0] + layer.backward.both[0] + layer.again.both[0]))
        besides = [0.0] * len(seconds)
        first, last = by_stage[0].embedding, by_stage[-1].head
        besides[0] += float(first.forward[0] + first.backward[0])
        besides[-1] += float(last.forward[0] + last.backward[0])
        key = tuple(seconds), tuple(besides), rooms
        if key not in self._cuts:
            self._cuts[key] = self._cut(seconds, besides, rooms)
        return self._cuts[key]

    def _cut(
        self, seconds: Sequence[float], besides: Sequence[float], rooms: tuple[float, ...]
    ) -> tuple[int, ...] | None:
        layers = self.question.spec.num_layers
        most = [layers] * len(seconds)
        while True:
            try:
                bounds = tuple(cut_alike(layers, seconds, besides, most))
            except ShunterError:
                return None
            over = [rank for rank in range(self.pp) if self.held(rank, bounds) > rooms[rank]]
            if not over:
                return bounds
            for rank in over:
                mine = [stage for stage, holder in enumerate(self.placement) if holder == rank]
                fullest = max(mine, key=lambda stage: bounds[stage + 1] - bounds[stage])
                most[fullest] = bounds[fullest + 1] - bounds[fullest] - 1
                if most[fullest] < 1:
                    return None

    def held(self, rank: int, bounds: Sequence[int]) -> float:
        """Bytes of a rank of the pipeline; as few as recomputation can make them."""
        counts = [end - begin for begin, end in pairwise(bounds)]
        mine = tuple(counts[stage] for stage, holder in enumerate(self.placement) if holder == rank)
        key = (rank, *(bounds if self.question.spec.experts is not None else mine))
        if key not in self._bytes:
            least = [AGAIN if self.choice.recompute[0] else KEEP] * self.question.spec.num_layers
            parts = _bytes(self.question, self.choice, bounds, least, self.placement, rank, self.microbatches)
            self._bytes[key] = sum(parts.values())
        return self._bytes[key]

    def fit(self, bounds: Sequence[int], rooms: Sequence[float]) -> bool:
        """Whether each rank has memory for its layers."""
        return all(self.held(rank, bounds) <= rooms[rank] for rank in range(self.pp))

    def links(self, order: Sequence[int]) -> tuple[Links, ...]:
        """Of the pipelines whose links differ, between their own devices; the slowest few."""
        if self.pp == 1:
            return (Links(),)
        stages, share = self.stages(order), self.question.coefficients["links"]
        turns = {(rank, rank + 1) for rank in range(self.pp - 1)}
        if self.chunks > 1 and self.schedule != "zbv":
            turns.add((self.pp - 1, 0))
        lines: dict[tuple[tuple[float, float], ...], float] = {}
        pairs = sorted(turns | {(b, a) for a, b in turns})
        for place in range(self.each):
            line = []
            for a, b in pairs:
                wait, speed = self.land.hop(stages[a][place], stages[b][place])
                line.append((wait, self.message / (speed * share)))
            lines[tuple(line)] = sum(wait + occupied for wait, occupied in line)
        slowest = sorted(lines, key=lambda line: -lines[line])[:MOST_LINES]
        blocking = self.question.practice.blocking
        return tuple(
            Links(between=dict(zip(pairs, line, strict=True)), blocking=blocking) for line in slowest
        )

    def predict(
        self,
        order: Sequence[int],
        bounds: Sequence[int] | None = None,
        how: str = "",
        *,
        strategies: Sequence[int] | None = None,
        own: Mapping[int, Choices] | None = None,
        ends: Choices | None = None,
        anyway: bool = False,
    ) -> Prediction | None:
        """By events, over the links of each pair. bounds: of the stages; default: by speed and memory.
        strategies, own, ends: as `score.predict` has them. None where no cut fits the devices, and, but with
        `anyway`, where something else does not."""
        rooms = self.rooms(order)
        found = [self.stage(ranks) for ranks in self.stages(order)]
        asked, each = tuple(one for one, _ in found), tuple(cost for _, cost in found)
        cut = self.cut(each, rooms) if bounds is None else tuple(bounds)
        if cut is None:
            return None
        site = Site(asked, each, rooms, cut, self.links(order))
        prediction = predict(
            self.question, self.choice, self.room, site, strategies=strategies, own=own, ends=ends
        )
        prediction = replace(prediction, placed=Placed(tuple(order), rooms, how))
        return prediction if anyway or prediction.fits(self.room) else None
