"""Beyond Galvatron's space, on the same profile: uneven stages, other schedules, several stages a rank.

What a layer takes and holds is the profile's model; a step is what the event simulator says, since the
original's formula knows even stages under 1F1B only. `beyond` gives all layers one strategy; `around` takes a
plan whose layers differ, and looks near its stages and micro-batches for other cuts and schedules, in which
each layer has its own again. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import ceil, inf

import numpy as np

from shunter.plan.choices import SCHEDULES
from shunter.plan.cuts import cut_alike
from shunter.plan.dynamic import solve
from shunter.plan.galvatron import Plan, Task, undominated
from shunter.plan.galvatron_profile import CACHE, Model, Profile, Strategy, strategies
from shunter.plan.memory import in_flight
from shunter.plan.space import divisors
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate

MOST_TURNS = 4
UNITS = 2048  # into which a rank's memory is cut
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


def around(profile: Profile, inside: Plan, batch: int, budget: int, world: int = 8) -> Plan | None:
    """The fastest plan within `budget` MB whose stages and micro-batches are as many as those of `inside`,
    half or twice as many: uneven stages under 1F1B and with backwards in halves, each layer with its own
    strategy. None where there is no pipeline."""
    room = budget - int(budget * CACHE) if budget // 1024 > 20 else budget
    best: Plan | None = None
    for chunks in (each for each in divisors(batch) if each in _near(inside.chunks)):
        model = Model(profile, batch, chunks)
        for pp in _near(inside.pp):
            if pp < 2 or pp > min(chunks, world, profile.layers):
                continue
            for width in (each for each in divisors(world // pp) if not each & (each - 1)):
                task = Task(model, pp, "tp_with_sp", width, world, room)
                if not task.allowed():
                    continue
                for name, cut in product(("1f1b", "zb1p"), _cuts(profile.layers, pp)):
                    found = _own(task, name, cut, budget, inf if best is None else best.seconds)
                    if found is not None and (best is None or found.seconds < best.seconds):
                        best = found
    return best


def _near(number: int) -> tuple[int, int, int]:
    return number // 2, number, 2 * number


def _cuts(layers: int, pp: int) -> Iterator[tuple[int, ...]]:
    """Even, and with some layers moved from the first stages to the last ones, or one the other way."""
    base, more = divmod(layers, pp)
    for moved in (-1, 0, 1, 2, 3):
        counts = [base + (stage >= pp - more) for stage in range(pp)]
        for step in range(abs(moved)):
            give, take = (step % pp, pp - 1 - step % pp) if moved > 0 else (pp - 1, 0)
            if give != take:
                counts[give] -= 1
                counts[take] += 1
        if min(counts) > 0:
            yield tuple(counts)


def _own(task: Task, name: str, cut: Sequence[int], budget: int, limit: float) -> Plan | None:
    """The fastest of a few heads. limit: seconds that it has to be under."""
    model, pp, best = task.model, task.pp, None
    every = list(dict.fromkeys(each._replace(checkpoint=False) for each in task.allowed()))
    quick = min(every, key=lambda head: sum(model.ends(head)[1]))
    small = min(every, key=lambda head: max(model.ends_memory(head)))
    for head in dict.fromkeys((quick, small)):
        chosen: list[Strategy] = []
        memory = []
        for stage, count in enumerate(cut):
            # With backwards in halves each rank holds as many micro-batches as the first one.
            kept = undominated(task, stage if name == "1f1b" else 0)
            size = np.array([[ceil(mb) for _, _, mb in kept]] * count, dtype=float)
            times = np.array([[seconds for _, seconds, _ in kept]] * count)
            taken = task.buffer + ceil(model.ends_memory(head)[stage])
            numbers = solve(size, times, None, task.room - taken, UNITS)
            if not numbers:
                break
            chosen += [kept[number][0] for number in numbers]
            memory.append(budget - task.room + taken + int(sum(size[0][number] for number in numbers)))
        else:
            seconds = _step(model, chosen, head, cut, name)
            if seconds < limit:
                limit = seconds
                best = Plan(seconds, model.chunks, pp, tuple(cut), tuple(chosen), head, tuple(memory), name)
    return best


def simulated(profile: Profile, plan: Plan, batch: int) -> float:
    """Seconds of a plan's step by events. The original's formula, which looks at the first and the last
    stage, is up to 3 % lower where layers of stages differ."""
    return _step(Model(profile, batch, plan.chunks), plan.strategies, plan.ends, plan.cut, plan.schedule)


def _step(model: Model, chosen: Sequence[Strategy], head: Strategy, cut: Sequence[int], name: str) -> float:
    """Seconds of a step, as simulated; the summing of gradients after it."""
    seconds: dict[tuple[str, int], float] = {}
    ends, begin, most = model.ends(head)[1], 0, 0.0
    for stage, count in enumerate(cut):
        mine = chosen[begin : begin + count]
        begin += count
        forward, weights = THIRD * ends[stage], THIRD * ends[stage]
        inner = ends[stage]
        for each in mine:
            took = model.layer(each)[1]
            inner += took
            forward += (0.25 if each.checkpoint else THIRD) * took
            weights += (0.25 if each.checkpoint else THIRD) * took
        seconds[FORWARD, stage] = forward
        if name == "zb1p":
            seconds[INPUT, stage], seconds[WEIGHT, stage] = inner - forward - weights, weights
        else:
            seconds[BACKWARD, stage] = inner - forward
        most = max(most, sum(model.layer(each)[0] - model.layer(each)[1] for each in mine))
    order = schedule(name).build(len(cut), model.chunks)
    return simulate(assemble(order), Costs(seconds)).elapsed + most


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
