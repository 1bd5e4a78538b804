"""Beyond Galvatron's space, on the same profile: uneven stages, other schedules, several stages a rank.

What a layer takes and holds is the profile's model; a step is what the event simulator says, since the
original's formula knows even stages under 1F1B only. All layers have one strategy. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

import numpy as np

from shunter.plan.choices import SCHEDULES
from shunter.plan.cuts import cut_alike
from shunter.plan.galvatron import Plan
from shunter.plan.galvatron_profile import CACHE, Model, Profile, Strategy, strategies
from shunter.plan.memory import in_flight
from shunter.plan.space import divisors
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate

MOST_TURNS = 4
THIRD = 1 / 3  # of a layer's time is its forward, as the profile has it


def beyond(profile: Profile, batch: int, budget: int, world: int = 8) -> Plan | None:
    """The fastest plan within `budget` MB, as simulated; none where nothing fits."""
    room = budget - int(budget * CACHE) if budget // 1024 > 20 else budget
    turns = []
    for chunks in divisors(batch):
        model = Model(profile, batch, chunks)
        for pp in divisors(world):
            if pp & (pp - 1) or pp > min(chunks, profile.layers):  # the profile knows powers of two
                continue
            for each in strategies(world, pp):
                if each.dp <= max(1, batch // chunks):
                    ends = sum(model.ends(each._replace(checkpoint=False))[1])
                    bound = (profile.layers * model.layer(each)[1] + ends) / pp * chunks
                    turns.append((bound, each, model))
    best: Plan | None = None
    for bound, each, model in sorted(turns, key=lambda turn: turn[0]):
        if best is not None and bound >= best.seconds:
            break
        for name, many in _schedules(each.pp, model.chunks, profile.layers):
            found = _simulated(model, each, name, many, room, budget)
            if found is not None and (best is None or found.seconds < best.seconds):
                best = found
    return best


def _schedules(pp: int, chunks: int, layers: int) -> Iterator[tuple[str, int]]:
    yield "1f1b", 1
    if pp == 1:
        return
    yield "zb1p", 1
    if 2 * pp <= layers:
        yield "zbv", 2
    if chunks % pp == 0:
        for many in range(2, MOST_TURNS + 1):
            if many * pp <= layers:
                yield "interleaved-1f1b", many


def _simulated(model: Model, each: Strategy, name: str, many: int, room: int, budget: int) -> Plan | None:
    pp, chunks, layers = each.pp, model.chunks, model.profile.layers
    order = schedule(name).build(pp, chunks, chunks=many if name == "interleaved-1f1b" else None)
    whole, inner = model.layer(each)
    head = each._replace(checkpoint=False)
    ends = model.ends(head)[1]
    stages = len(order.placement)
    besides = [0.0] * stages
    besides[0] += ends[0] if pp > 1 else ends[0] / 2
    besides[-1] += ends[-1] if pp > 1 else ends[0] / 2
    cut = cut_alike(layers, [inner] * stages, besides)
    counts = [end - begin for begin, end in pairwise(cut)]
    used = _memory(model, each, head, order.placement, counts, name, many)
    if max(used) > room:
        return None
    seconds: dict[tuple[str, int], float] = {}
    share = 0.25 if each.checkpoint else THIRD
    for stage, count in enumerate(counts):
        time = count * inner + besides[stage]
        seconds[FORWARD, stage] = share * time
        if schedule(name).halves:
            seconds[INPUT, stage] = (1 - share - THIRD) * time
            seconds[WEIGHT, stage] = THIRD * time
        else:
            seconds[BACKWARD, stage] = (1 - share) * time
    elapsed = simulate(assemble(order), Costs(seconds)).elapsed
    most = max(
        sum(counts[s] for s, holder in enumerate(order.placement) if holder == rank) for rank in range(pp)
    )
    spare = budget - room
    return Plan(
        elapsed + most * (whole - inner), chunks, pp, tuple(counts), (each,) * layers, head,
        tuple(size + spare for size in used), name, many,
    )  # fmt: skip


def _memory(
    model: Model,
    each: Strategy,
    head: Strategy,
    placement: Sequence[int],
    counts: Sequence[int],
    name: str,
    many: int,
) -> list[int]:
    """MB by rank: the profile's model, with as many micro-batches in flight as the schedule holds."""
    pp, one = each.pp, np.ones(1, dtype=np.int64)
    by_rank = [ceil(size) for size in model.ends_memory(head)]
    last = placement[-1]
    if pp > 1 and last != pp - 1:  # zbv has the head on the first rank
        by_rank[last] += by_rank[-1] - ceil(model.ends_memory(head)[1] if pp > 2 else 1024)
    states = model.memory(each._replace(pp=pp), pp - 1) if pp > 1 else model.memory(each, 0)
    row = model.memory(each, pp - 2) - states if pp > 1 else 0.0  # one more micro-batch in flight
    number = one * SCHEDULES.index(name)
    for rank in range(pp):
        flight = float(in_flight(number, one * pp, one * many, one * model.chunks, one * rank)[0])
        layers = sum(counts[s] for s, holder in enumerate(placement) if holder == rank)
        by_rank[rank] += ceil(layers * (states + (flight - 1) * row))
    return by_rank
