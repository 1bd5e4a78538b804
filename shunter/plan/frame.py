"""The frame that layouts have in common whose layers, or ends, have degrees of their own: stages, schedule,
micro-batches and devices; and which grids embedding and head may have in it. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from shunter.plan import memory
from shunter.plan.choices import SCHEDULES, Choices, Floats, Question
from shunter.plan.estimate import costs, ends_of_step
from shunter.plan.practice import HALVES, RECOMPUTE
from shunter.plan.score import Prediction, placement_of, predict, stage_of
from shunter.plan.sited import Grounds
from shunter.plan.space import Fixed, divisors, grids, row_parts
from shunter.plan.strategies import KEEP
from shunter.plan.turning import turn

AXES = ("dp", "fsdp", "cp", "tp", "ep", "etp")
GAIN = 0.002  # a share of a step that is not worth layers that differ
ENDS = 3  # grids of embedding and head, besides the layers', that one frame is solved with
LEANER = 0.005  # a share of the room that is worth a slower one of these


def frames(scored: Sequence[Prediction], looks: int) -> list[Prediction]:
    """The first of each frame, stages, schedule and micro-batches, and so many of them."""
    found: dict[tuple[int, ...], Prediction] = {}
    for each in scored:
        choice = each.choice
        frame = *(int(part[0]) for part in (choice.pp, choice.schedule, choice.chunks)), each.microbatches
        found.setdefault(frame, each)
    return list(found.values())[:looks]


class Frame:
    """every: grids of a layer, the base's first; ends: of embedding and head, likewise. By rank of the
    pipeline: asked, the question over its own links; devices; rooms, bytes, where devices differ."""

    def __init__(
        self,
        question: Question,
        base: Prediction,
        fixed: Fixed | None = None,
        room: float = float("inf"),
    ) -> None:
        """fixed: what each layer must have; embedding and head are free. room: as `solve` has it."""
        self.fixed: Fixed = fixed or {}
        name = SCHEDULES[base.choice.schedule[0]]
        self.free = question.practice.offers and name not in HALVES and self.fixed.get("recompute") != "none"
        kind = "layer" if self.free else "none"
        self.question, self.base, self.bounds, self.m = question, base, base.bounds, base.microbatches
        self.choice = replace(base.choice, recompute=np.array([RECOMPUTE.index(kind)]))
        self.pp, ranks = int(self.choice.pp[0]), int(self.choice.stage_ranks[0])
        self.placement = placement_of(name, self.pp, int(self.choice.chunks[0]))
        self.asked, self.rooms = (question,) * self.pp, (float("inf"),) * self.pp
        if base.placed is not None:
            ground = Grounds(question, self.choice, room)
            self.asked = tuple(ground.stage(each)[0] for each in ground.stages(base.placed.order))
            self.rooms = base.placed.rooms
        self.devices = [
            it.fabric.kind(rank * ranks, (rank + 1) * ranks) for rank, it in enumerate(self.asked)
        ]
        self.every = choices_of(question, self.choice, self.fixed)
        self.ends = ends_of(question, self.choice)
        # A rank of each sort: where devices do not differ there is one.
        self.sorts = sorted({id(it): rank for rank, it in reversed(list(enumerate(self.asked)))}.values())

    def ends_worth_a_look(self, room: float) -> list[Choices]:
        """Grids of embedding and head that may be better than the base's: quicker, or leaner by LEANER where
        room is what layers lack. None that another is as quick and as lean as; of many the quickest, the
        leanest and one between."""
        many = self._ends_that_may_be()
        seconds, size = self._ends_costs(many)  # the base's own is the first
        short = any(each != KEEP for each in self.base.strategies) or not self.base.fits(room)
        # Where it is not, there is no more to gain than by themselves; the rest may come from layers.
        slowest = seconds[0] - (0.0 if short else GAIN / 2 * self.base.seconds)
        leanest = size[0] - LEANER * room if short else -np.inf
        kept: list[int] = []
        for number in sorted(range(1, len(many)), key=lambda n: (seconds[n], size[n])):
            better = seconds[number] < slowest or size[number] < leanest
            if better and all(size[number] < size[other] for other in kept):
                kept.append(number)
        few = {round(n * (len(kept) - 1) / (ENDS - 1)) for n in range(ENDS)} if kept else set()
        return [many.take([kept[number]]) for number in sorted(few)]

    def leanest_ends(self, count: int) -> list[Choices]:
        """So many grids of embedding and head with which the fuller of their ranks holds less than with the
        base's, the leanest first."""
        many = self._ends_that_may_be()
        size = self._ends_bytes(many)
        found = sorted(range(1, len(many)), key=lambda n: float(size[n]))
        return [many.take([number]) for number in found[:count] if size[number] < size[0]]

    def _ends_that_may_be(self) -> Choices:
        """The base's own first."""
        tied = SCHEDULES[self.choice.schedule[0]] == "zbv" and self.question.spec.tied
        return self.ends.take(self.ends.fsdp == 1) if tied else self.ends  # as in `plan.space`

    def _ends_costs(self, many: Choices) -> tuple[Floats, Floats]:
        """Of embedding and head under each grid, seconds of a step, with turns from and to the base's, and
        bytes of the fuller of their ranks without layers."""
        spec, none = self.question.spec, np.zeros(len(many))
        taken = none
        for rank in dict.fromkeys((self.placement[0], self.placement[-1])):
            it, device = self.asked[rank], self.devices[rank]
            found = costs(it, many, device)
            once = none
            if rank == self.placement[0]:
                once = once + found.embedding.forward + found.embedding.backward
                once = once + 2 * found.messages.end + found.gather_end
            if rank == self.placement[-1]:
                once = once + found.head.forward + found.head.backward + 2 * found.messages.end
                there = spec.tied and rank == self.placement[0]  # the embedding's, gathered already
                once = once + (0.0 if there else 1.0) * found.gather_end
            taken = taken + self.m * once + ends_of_step(it, many, found, none, none, none, device)
            each = [many.take([number]) for number in range(len(many))]
            if rank == self.placement[0]:
                taken = taken + [2 * self.m * turn(it, other, self.choice) for other in each]
            if rank == self.placement[-1]:
                taken = taken + [2 * self.m * turn(it, self.choice, other) for other in each]
        return taken, self._ends_bytes(many)

    def _ends_bytes(self, many: Choices) -> Floats:
        ranks = dict.fromkeys((self.placement[0], self.placement[-1]))
        return np.maximum.reduce([self.bare_apart(rank, many) for rank in ranks])

    def whole(
        self,
        base: Choices,
        inside: Sequence[int],
        own: Mapping[int, Choices],
        ends: Choices | None,
        room: float,
    ) -> Prediction | None:
        """A layout in this frame, on the devices that the base is on."""
        placed = self.base.placed
        if placed is None:
            return predict(self.question, base, room, strategies=inside, cut=self.bounds, own=own, ends=ends)
        ground = Grounds(self.question, base, room)
        return ground.predict(
            placed.order, self.bounds, placed.how, strategies=inside, own=own, ends=ends, anyway=True
        )

    def beside_the_file_s_order(self, found: Prediction, room: float) -> Prediction:
        """With the seconds of the same layout on the devices in the order of the cluster's file."""
        assert found.placed is not None
        plain = Grounds(self.question, found.choice, room).predict(
            tuple(range(len(found.placed.order))), found.bounds,
            strategies=found.strategies, own=found.own, ends=found.ends,
        )  # fmt: skip
        naive = float("inf") if plain is None else plain.seconds
        return replace(found, placed=replace(found.placed, naive=naive))

    def like(self, rank: int) -> memory.Stage:
        """A rank of the pipeline that keeps all of its layers."""
        kept = [KEEP] * self.question.spec.num_layers
        return stage_of(self.question, self.choice, self.bounds, kept, self.placement, rank, self.m)

    def bare(self, rank: int, ends: Choices | None) -> float:
        """Bytes of a rank without its layers."""
        return float(self.bare_apart(rank, self.choice if ends is None else ends)[0])

    def bare_apart(self, rank: int, ends: Choices) -> Floats:
        """The same under each grid of embedding and head."""
        stage, one = self.like(rank), np.ones(len(ends))
        mine = memory.Stage(*(one * getattr(stage, each.name) for each in fields(memory.Stage)))
        mine = memory.ends_alone(mine)
        return self.still(rank, memory.stage_bytes(self.asked[rank], ends, mine, end=False))

    def still(self, rank: int, parts: dict[str, Floats]) -> Floats:
        """All but what is there for a moment, which is one layer's, of whatever grid."""
        return memory.total(parts) - parts["passing"] * (1 + self.asked[rank].coefficients["margin"])


def choices_of(question: Question, choice: Choices, fixed: Fixed) -> Choices:
    """The layout's frame with each grid over the ranks of its stages that shares its rows out evenly and has
    what is fixed; its own first."""
    own, rows = choice.grid(0), int(choice.rows[0] * choice.data[0])
    rest = [int(part[0]) for part in (choice.schedule, choice.chunks, choice.recompute)]
    degrees: list[tuple[int, ...]] = [(own.pp, own.dp, own.fsdp, own.cp, own.tp, own.ep, own.etp)]
    mine: dict[str, int | str] = {name: value for name, value in fixed.items() if name in AXES}
    degrees += [each for each in grids(question, {**mine, "pp": own.pp}) if each != degrees[0]]
    lines = [
        [*each, rows // (each[1] * each[2]), *rest] for each in degrees if rows % (each[1] * each[2]) == 0
    ]
    return _known(question, Choices.of(np.array(lines, dtype=np.int64)))


def ends_of(question: Question, choice: Choices) -> Choices:
    """The same of embedding and head, which have no experts, and no heads that would have to be cut."""
    own, rows = choice.grid(0), int(choice.rows[0] * choice.data[0])
    block, ranks = question.fabric.block, int(choice.stage_ranks[0])
    rest = [int(part[0]) for part in (choice.schedule, choice.chunks, choice.recompute)]
    degrees = [(own.dp, own.fsdp, own.cp, own.tp)]
    for tp in (each for each in divisors(ranks) if each <= min(block, question.spec.vocab_size)):
        for cp in (each for each in sorted({1, own.cp}) if ranks // tp % each == 0):
            data = ranks // tp // cp
            if rows % data or question.row % row_parts(question.practice, cp, tp):
                continue
            for fsdp in divisors(data):
                whole = fsdp * cp * tp % block == 0 or question.fabric.world == block  # as in `plan.space`
                if data // fsdp == 1 or fsdp == 1 or whole:
                    degrees.append((data // fsdp, fsdp, cp, tp))
    lines = [[own.pp, *each, 1, 1, rows // (each[0] * each[1]), *rest] for each in dict.fromkeys(degrees)]
    return _known(question, Choices.of(np.array(lines, dtype=np.int64)))


def _known(question: Question, many: Choices) -> Choices:
    """Without those of which a profile does not tell: much larger micro-batches."""
    if (profile := question.profile) is None:
        return many
    most = np.array([profile.most(tp) for tp in many.tp.tolist()])
    return many.take(many.rows / many.cp <= most)
