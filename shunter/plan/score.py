"""One layout in full: where it is cut, which layers are computed again, and what the event simulator says.

Imports without torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from shunter.plan import compute, memory
from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.plan.cuts import cut_alike, cut_mixed
from shunter.plan.elapsed import elapsed, held_at_most, links_of, times_again
from shunter.plan.estimate import Costs as RankCosts
from shunter.plan.estimate import LayerCost, costs, ends_of_step
from shunter.plan.own import alike, end_costs, own_costs, sorts_of, turned, updated
from shunter.plan.practice import RECOMPUTE
from shunter.plan.strategies import AGAIN, ASIDE, KEEP, cheapest
from shunter.schedule.costs import Links

NODES = 8_000  # of a simulated program: longer ones are carried on by their period


@dataclass(frozen=True)
class Prediction:
    """What one layout takes. Seconds of a step: what the busiest rank computes, what messages add to it, and
    the rest, in which it waits.

    bounds: layers of the stages. strategies: of each layer (`plan.strategies`). bytes: by stage of a rank's
    place in the pipeline, by part (`memory.PARTS`). own: of layers whose degrees are not those of `choice`;
    ends: of embedding and head, where theirs are not.
    forward, backward, weights: seconds of a micro-batch by stage; weights: of the backward, those that a
    schedule with backwards in halves takes later.
    """

    choice: Choices
    bounds: tuple[int, ...]
    strategies: tuple[int, ...]
    seconds: float
    compute: float
    communication: float
    bubble: float
    bytes: tuple[dict[str, float], ...]
    microbatches: int
    placed: Placed | None = None
    own: Mapping[int, Choices] = field(default_factory=dict)
    forward: tuple[float, ...] = ()
    backward: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    ends: Choices | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it another layout than others are."""
        own = {number: dict(self.own[number].settings(0)) for number in sorted(self.own)}
        found = {**self.choice.settings(0), **({"layers": own} if own else {})}
        return found if self.ends is None else {**found, "ends": dict(self.ends.settings(0))}

    @property
    def fullest(self) -> float:
        """Bytes of the fullest rank."""
        return max(sum(parts.values()) for parts in self.bytes)

    def which(self, strategy: int) -> list[int]:
        """Numbers of the layers with a strategy."""
        return [layer for layer, each in enumerate(self.strategies) if each == strategy]

    @property
    def recomputed(self) -> tuple[int, ...]:
        """Of each stage, layers that are computed again."""
        return tuple(self.strategies[a:b].count(AGAIN) for a, b in pairwise(self.bounds))

    def fits(self, room: float) -> bool:
        """Whether every rank has memory for it: its devices', where it is placed, else `room` bytes."""
        rooms = (room,) * len(self.bytes) if self.placed is None else self.placed.rooms
        return all(sum(parts.values()) <= most for parts, most in zip(self.bytes, rooms, strict=True))


@dataclass(frozen=True)
class Placed:
    """Which device does what, on a cluster where that matters. order[place of the grid]: number of the
    device. rooms: bytes of the smallest device of each stage. how: in words, how the order was found. naive:
    seconds of a step with devices in the order of the cluster's file; infinite where it does not fit."""

    order: tuple[int, ...]
    rooms: tuple[float, ...]
    how: str = ""
    naive: float = 0.0


@dataclass(frozen=True)
class Site:
    """What `predict` needs of ranks that have been placed. By rank of the pipeline: asked, the question over
    its own links; costs; rooms, bytes. bounds: layers of the stages. links: of each pipeline that differs."""

    asked: tuple[Question, ...]
    costs: tuple[RankCosts, ...]
    rooms: tuple[float, ...]
    bounds: tuple[int, ...]
    links: tuple[Links, ...]


def predict(
    question: Question,
    choice: Choices,
    room: float | None = None,
    site: Site | None = None,
    strategies: Sequence[int] | None = None,
    cut: Sequence[int] | None = None,
    own: Mapping[int, Choices] | None = None,
    ends: Choices | None = None,
) -> Prediction:
    """Of one layout (`choice` has length 1). room: bytes that a rank has; layers are computed again, or put
    aside, where the practice can choose them, as few as fit. site: where its ranks are, if that has been
    decided. strategies: of the layers, and cut: bounds of the stages, likewise. own: degrees of some layers
    (by number, with the rows that their ranks have then), ends: of embedding and head, likewise; both with
    `strategies`."""
    assert len(choice) == 1
    own = own or {}
    assert not (own or ends is not None) or strategies is not None
    pp, chunks = int(choice.pp[0]), int(choice.chunks[0])
    m = int(choice.microbatches(question.batch)[0])
    name = SCHEDULES[choice.schedule[0]]
    placement = placement_of(name, pp, chunks)
    ranks = int(choice.stage_ranks[0])
    asked = (question,) * pp if site is None else site.asked
    if site is None:
        # By the rank of the pipeline: its slowest device.
        kinds = [question.fabric.kind(rank * ranks, (rank + 1) * ranks) for rank in range(pp)]
        known: dict[int, RankCosts] = {}
        for kind in kinds:
            if id(kind) not in known:
                known[id(kind)] = costs(question, choice, kind)
        each = [known[id(kinds[rank])] for rank in placement]
        bounds = _cut(question, each, placement, ends) if cut is None else list(cut)
    else:
        each, bounds = [site.costs[rank] for rank in placement], list(site.bounds)
    stages = len(placement)
    rooms: Sequence[float | None] = (room,) * pp if site is None else site.rooms
    chosen = strategies or _strategies(question, choice, each, bounds, placement, m, rooms)
    held = [_bytes(asked[rank], choice, bounds, chosen, placement, rank, m, own, ends) for rank in range(pp)]
    theirs = own_costs(asked, own, bounds, placement)
    at_ends = end_costs(asked, ends, each, placement)
    forward, backward, weights, busy, redone = ([0.0] * stages for _ in range(5))
    # A stage that is computed again is so by an action of the program, which some backwards do without.
    apart = pp > 1 and RECOMPUTE[choice.recompute[0]] == "stage"
    for stage in range(stages):
        cost, begin, end = each[stage], bounds[stage], bounds[stage + 1]
        ahead = behind = w = inner = 0.0
        for layer in range(begin, end):
            part = _part(question, theirs.get(layer, cost), layer)
            f, b = float(part.forward.both[0]), float(part.backward.both[0])
            w += float(part.weights[0] * part.backward.compute[0])
            inner += float(part.forward.compute[0] + part.backward.compute[0])
            if chosen[layer] == AGAIN and apart:
                redone[stage] += float(part.again.both[0])
            elif chosen[layer] == AGAIN:
                b += float(part.again.both[0])
                inner += float(part.again.compute[0])
            elif chosen[layer] == ASIDE and part.aside is not None:
                f, b = f + float(part.aside[0][0]), b + float(part.aside[1][0])
            ahead, behind = ahead + f, behind + b
        if own or ends is not None:
            moved = turned(asked[placement[stage]], choice, own, begin, end, ends)
            ahead, behind = ahead + moved, behind + moved
        received = float(cost.messages.received[0])
        ahead, behind = ahead + received * (stage > 0), behind + received * (stage < stages - 1)
        for end_part, its, there in (
            (at_ends[0].embedding, at_ends[0], stage == 0),
            (at_ends[1].head, at_ends[1], stage == stages - 1),
        ):
            if there:
                ahead += float(end_part.forward[0] + its.messages.end[0])
                # A tied weight that is there already is not gathered once more.
                there_already = end_part is its.head and question.spec.tied and placement[0] == placement[-1]
                ahead += 0.0 if there_already else float(its.gather_end[0])
                behind += float(end_part.backward[0] + its.messages.end[0])
                w += float(end_part.weights[0] * end_part.backward[0])
                inner += float(end_part.forward[0] + end_part.backward[0])
        forward[stage], backward[stage], weights[stage], busy[stage] = ahead, behind, w, inner
    wires = (links_of(question, choice),) if site is None else site.links
    limit = NODES if site is None else NODES // 4  # placed ones are simulated many times
    spent = max(
        elapsed(
            choice,
            placement,
            forward,
            backward,
            weights,
            redone if apart else None,
            name,
            chunks,
            m,
            wire,
            limit,
        )
        for wire in wires
    )
    work, busiest = [0.0] * pp, [0.0] * pp
    times = times_again(name, pp, m, chunks) if apart else (0.0,) * stages
    for stage, rank in enumerate(placement):
        work[rank] += m * (forward[stage] + backward[stage] + times[stage] * redone[stage])
        busiest[rank] += m * (busy[stage] + times[stage] * redone[stage])
    top = max(range(pp), key=work.__getitem__)
    extra, updating = _ends(asked, choice, each, bounds, placement, backward, own, theirs, ends)
    seconds = spent + extra
    inner = busiest[top] + updating
    sent = max(work[top] - busiest[top] + extra - updating, 0.0)
    sent = sent if sent > 1e-9 * seconds else 0.0
    waiting = seconds - inner - sent
    waiting = waiting if waiting > 1e-9 * seconds else 0.0
    return Prediction(
        choice, tuple(bounds), tuple(chosen), seconds, inner, sent, waiting,
        tuple(held), m, own=own,
        forward=tuple(forward), backward=tuple(backward), weights=tuple(weights), ends=ends,
    )  # fmt: skip


def placement_of(name: str, pp: int, chunks: int) -> tuple[int, ...]:
    """Rank of the pipeline of each stage."""
    if name == "zbv":
        return (*range(pp), *reversed(range(pp)))
    return tuple(range(pp)) * chunks


def _part(question: Question, cost: RankCosts, layer: int) -> LayerCost:
    experts = question.spec.experts
    return cost.mixture if experts is not None and experts.inside(layer) else cost.dense


def _cut(
    question: Question, each: Sequence[RankCosts], placement: Sequence[int], others: Choices | None = None
) -> list[int]:
    spec = question.spec

    def whole(cost: LayerCost) -> float:
        return float(cost.forward.both[0] + cost.backward.both[0] + cost.again.both[0])

    at_ends = end_costs((question,) * len(each), others, each, placement)
    ends = at_ends[0].embedding, at_ends[1].head
    first, last = (float(end.forward[0] + end.backward[0]) for end in ends)
    if spec.experts is not None and any(
        spec.experts.inside(layer) != spec.experts.inside(spec.num_layers - 1)
        for layer in range(spec.num_layers)
    ):
        layers = [whole(_part(question, each[0], layer)) for layer in range(spec.num_layers)]
        return cut_mixed(layers, placement, first, last)
    seconds = [whole(_part(question, cost, spec.num_layers - 1)) for cost in each]
    besides = [0.0] * len(each)
    besides[0] += first
    besides[-1] += last
    return cut_alike(spec.num_layers, seconds, besides)


def stage_of(
    question: Question,
    choice: Choices,
    bounds: Sequence[int],
    strategies: Sequence[int],
    placement: Sequence[int],
    rank: int,
    m: int,
    among: Collection[int] | None = None,
) -> memory.Stage:
    """What the rank of the pipeline has, all its stages together. among: those of its layers, and no more."""
    return _stage(choice, rank, m, _counted(question, bounds, strategies, placement, rank, among))


# Layers, those with experts, ends, heads, layers computed again, layers put aside; and where the rank has
# stages of unequal length, all stages' lengths.
Counted = tuple[int, int, int, bool, int, int, tuple[int, ...]]


def _counted(
    question: Question,
    bounds: Sequence[int],
    strategies: Sequence[int],
    placement: Sequence[int],
    rank: int,
    among: Collection[int] | None = None,
) -> Counted:
    """All by which what one rank has differs from what another has."""
    mine = [stage for stage, holder in enumerate(placement) if holder == rank]
    experts = question.spec.experts
    layers = [n for s in mine for n in range(bounds[s], bounds[s + 1]) if among is None or n in among]
    mixtures = 0 if experts is None else sum(experts.inside(n) for n in layers)
    ends = (0 in mine) + (len(placement) - 1 in mine)
    if question.spec.tied and ends == 2:
        ends = 1
    head = len(placement) - 1 in mine
    if among is not None:
        ends, head = 0, False
    theirs = [strategies[n] for n in layers]
    counts = tuple(end - begin for begin, end in pairwise(bounds))
    uneven = counts if len(mine) > 1 and len({counts[stage] for stage in mine}) > 1 else ()
    return len(layers), mixtures, ends, head, theirs.count(AGAIN), theirs.count(ASIDE), uneven


def _stage(choice: Choices, rank: int, m: int, counted: Counted) -> memory.Stage:
    layers, mixtures, ends, head, again, aside, uneven = counted
    flight = memory.in_flight(
        choice.schedule, choice.pp, choice.chunks, np.array([m]), np.array([rank], dtype=np.int64)
    )
    if uneven:
        name, pp = SCHEDULES[choice.schedule[0]], int(choice.pp[0])
        few = m if m <= 4 * pp else 3 * pp + m % pp
        flight = np.array([held_at_most(name, pp, few, int(choice.chunks[0]), uneven)[rank]])
    return memory.Stage(
        np.array([float(layers - mixtures)]),
        np.array([float(mixtures)]),
        np.array([float(ends)]),
        np.array([float(head)]),
        flight,
        np.array([again / max(layers, 1)]),
        np.array([aside / max(layers, 1)]),
    )


def _bytes(
    question: Question,
    choice: Choices,
    bounds: Sequence[int],
    strategies: Sequence[int],
    placement: Sequence[int],
    rank: int,
    m: int,
    own: Mapping[int, Choices] | None = None,
    ends: Choices | None = None,
) -> dict[str, float]:
    counted = _counted(question, bounds, strategies, placement, rank)
    if not own and ends is None:
        # A search that moves layers and devices about asks for the same rank many times.
        _, held = choice.known.setdefault((id(question), rank, m, counted), (question, {}))
        if not held:
            found = memory.stage_bytes(question, choice, _stage(choice, rank, m, counted))
            held.update((name, float(part[0])) for name, part in found.items())
        return dict(held)
    stage = _stage(choice, rank, m, counted)
    own = own or {}
    rest = set(range(question.spec.num_layers)) - own.keys()
    like = stage_of(question, choice, bounds, strategies, placement, rank, m, rest)
    if ends is None:
        parts = [(choice, replace(like, ends=stage.ends, head=stage.head))]
    else:
        parts = [(choice, like), (ends, memory.ends_alone(stage))]
    for numbers, its in alike(own):
        like = stage_of(question, its, bounds, strategies, placement, rank, m, numbers)
        if like.dense[0] + like.mixtures[0]:
            parts.append((its, like))
    return {name: float(part[0]) for name, part in memory.together(question, parts).items()}


def _strategies(
    question: Question,
    choice: Choices,
    each: Sequence[RankCosts],
    bounds: Sequence[int],
    placement: Sequence[int],
    m: int,
    rooms: Sequence[float | None],
) -> list[int]:
    """Of each layer: alike for all, or by the dynamic programme what takes least time of what fits."""
    layers = question.spec.num_layers
    if choice.recompute[0] == 0:
        return [KEEP] * layers
    found = [AGAIN] * layers
    if not question.practice.offers or RECOMPUTE[choice.recompute[0]] != "layer" or None in rooms:
        return found
    for rank, room in enumerate(rooms):
        assert room is not None
        mine = [stage for stage, holder in enumerate(placement) if holder == rank]
        numbers = [n for stage in mine for n in range(bounds[stage], bounds[stage + 1])]
        parts = [_part(question, each[mine[0]], n) for n in numbers]
        again = [float(part.again.both[0]) for part in parts]
        aside = [float(part.aside[0][0] + part.aside[1][0]) for part in parts if part.aside is not None]

        def bytes_of(chosen: Sequence[int], rank: int = rank, numbers: list[int] = numbers) -> float:
            whole = list(found)
            for number, strategy in zip(numbers, chosen, strict=True):
                whole[number] = strategy
            return sum(_bytes(question, choice, bounds, whole, placement, rank, m).values())

        flight = stage_of(question, choice, bounds, found, placement, rank, m).flight
        ranks = int(choice.stage_ranks[0])
        device = question.fabric.kind(rank * ranks, (rank + 1) * ranks)
        most = float(memory.most_aside(question, choice, device, flight)[0])
        chosen = cheapest(
            again,
            aside if len(aside) == len(parts) else None,
            room,
            bytes_of,
            None if most == float("inf") else int(most),
        )
        for number, strategy in zip(numbers, chosen, strict=True):
            found[number] = strategy
    return found


def _ends(
    asked: Sequence[Question],
    choice: Choices,
    each: Sequence[RankCosts],
    bounds: Sequence[int],
    placement: Sequence[int],
    backward: Sequence[float],
    own: Mapping[int, Choices],
    theirs: Mapping[int, RankCosts],
    ends: Choices | None,
) -> tuple[float, float]:
    """Seconds of what stands at both ends of a step on the slowest rank, and of them the optimizer's. theirs:
    costs of layers with their own degrees."""
    apart = ends is not None
    most = updating = 0.0
    for rank, question in enumerate(asked):
        mine = [stage for stage, holder in enumerate(placement) if holder == rank]
        every = [n for s in mine for n in range(bounds[s], bounds[s + 1])]
        dense, mixed = sorts_of(question, [n for n in every if n not in own])
        device = question.fabric.kind(
            rank * int(choice.stage_ranks[0]), (rank + 1) * int(choice.stage_ranks[0])
        )
        last = np.array([sum(backward[stage] for stage in mine)])
        at = ends_of_step(question, choice, each[mine[0]], dense, mixed, last, device, layers_only=apart)
        found, held = float(at[0]), updated(question, choice, dense, mixed, ends=not apart)
        if ends is not None:
            none = np.zeros(1)
            more = ends_of_step(question, ends, each[mine[0]], none, none, last, device)
            found, held = found + float(more[0]), held + updated(question, ends, none, none, ends=True)
        for numbers, its in alike({n: own[n] for n in every if n in own}):
            sorts = sorts_of(question, numbers)
            more = ends_of_step(question, its, theirs[numbers[0]], *sorts, last, device, layers_only=True)
            found, held = found + float(more[0]), held + updated(question, its, *sorts, ends=False)
        if found > most:
            most, updating = found, float(compute.update(question, held, device)[0])
    return most, updating
