"""Galvatron's search over its own profiles and cost model: the same space, every layer its own strategy.

Loops over micro-batches, stages, modes and widths as search_engine.py has them; within a stage the dynamic
programme of `dynamic`. Three things make it quick, and none changes what is found: the programme does not
depend on the embedding's strategy, so it is run once for all; a strategy that another of the same width beats
in time and memory is left out; and a loop whose bound is no better than the best plan is not entered.
Imports without torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from shunter.plan.choices import Floats
from shunter.plan.dynamic import follow, table
from shunter.plan.galvatron_profile import CACHE, Model, Profile, Strategy, pipeline_seconds, strategies
from shunter.plan.space import divisors

MODES = ("tp_only", "sp_only", "tp_with_sp")


@dataclass(frozen=True)
class Plan:
    """seconds: of a step by the cost model. cut: layers of each stage. strategies: of each layer, ends: of
    embedding and head. memory: MB by stage, with what is left to the allocator. schedule, turns: name, and
    stages a rank."""

    seconds: float
    chunks: int
    pp: int
    cut: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    ends: Strategy
    memory: tuple[int, ...]
    schedule: str = "1f1b"
    turns: int = 1


@dataclass(frozen=True)
class Result:
    """plan: none where nothing fits. tasks: loops there are, entered: those that were not bounded away."""

    plan: Plan | None
    tasks: int
    entered: int
    seconds: float


@dataclass(frozen=True)
class Task:
    """One turn of the outer loops. room: MB for layers, embedding and buffer."""

    model: Model
    pp: int
    mode: str
    width: int
    world: int
    room: int

    def allowed(self) -> list[Strategy]:
        most = min(self.model.batch // self.model.chunks, self.world // self.pp)
        return [
            each
            for each in strategies(self.world, self.pp)
            if each.width <= self.width
            and each.dp <= max(most, 1)
            and (self.mode != "tp_only" or each.sp == 1)
            and (self.mode != "sp_only" or each.tp == 1)
        ]

    @property
    def buffer(self) -> int:
        """MB of the tensor ranks' buffer."""
        return 0 if self.mode == "sp_only" else int(self.model.buffer(self.pp, self.width, self.world))


def search(profile: Profile, batch: int, budget: int, world: int = 8) -> Result:
    """The best plan within `budget` MB of a device."""
    begin = time.perf_counter()
    room = budget - int(budget * CACHE) if budget // 1024 > 20 else budget
    tasks = [*_tasks(profile, batch, world, room)]
    turns = [
        (_bound(task, cut), number, cut)
        for number, task in enumerate(tasks)
        for cut in [even(profile.layers, task.pp)]
    ]
    # A plan to begin with, so that most turns are bounded away at once.
    best = uniform(profile, batch, budget, world)
    entered = 0
    for bound, number, cut in sorted(turns):
        if best is not None and bound >= best.seconds:
            break
        entered += 1
        found = _solve(tasks[number], cut, budget, best.seconds if best else inf)
        if found is not None:
            best = found
    return Result(best, len(tasks), entered, time.perf_counter() - begin)


def _tasks(profile: Profile, batch: int, world: int, room: int) -> Iterator[Task]:
    for chunks in divisors(batch):
        model = Model(profile, batch, chunks)
        pp = 1
        while pp <= min(world, chunks, profile.layers):
            widest = world // pp
            least = max(1, widest // max(1, min(batch // chunks, widest)))
            for mode in MODES:
                width = widest if mode == "sp_only" else 1
                while width <= widest:
                    if width >= least:
                        yield Task(model, pp, mode, width, world, room)
                    width *= 2
            pp *= 2


def _bound(task: Task, cut: Sequence[int]) -> float:
    """Seconds that no plan of the task is under: layers that may be mixed in any shares within the memory,
    and for embedding and head the quickest and the smallest."""
    allowed = task.allowed()
    if not allowed:
        return inf
    model = task.model
    heads = list(dict.fromkeys(each._replace(checkpoint=False) for each in allowed))
    ends = np.min([model.ends(head)[1] for head in heads], axis=0)
    taken = np.min([model.ends_memory(head) for head in heads], axis=0)
    times = np.array([model.layer(each)[1] for each in allowed])
    inner = []
    for stage, count in enumerate(cut):
        sizes = np.ceil([model.memory(each, stage) for each in allowed])
        room = (task.room - task.buffer - ceil(taken[stage])) / count
        inner.append(count * _mixed(sizes, times, room) + float(ends[stage]))
    return pipeline_seconds(inner, [0.0] * len(cut), model.chunks)


def _mixed(sizes: Floats, times: Floats, room: float) -> float:
    """The least mean time of a mixture whose mean size is at most `room`: of one kind, or of two."""
    fits = sizes <= room
    if not fits.any():
        return inf
    best = float(times[fits].min())
    small, large = sizes[fits][:, None], sizes[~fits][None]
    share = (room - small) / (large - small)
    both = times[fits][:, None] * (1 - share) + times[~fits][None] * share
    return min(best, float(both.min())) if both.size else best


def even(layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage, the remainder in the last."""
    each = layers // pp
    return (*[each] * (pp - 1), layers - each * (pp - 1))


def _solve(task: Task, cut: Sequence[int], budget: int, limit: float) -> Plan | None:
    """The best of the task's plans, if it is under `limit` seconds."""
    model, room = task.model, task.room - task.buffer
    heads = list(dict.fromkeys(each._replace(checkpoint=False) for each in task.allowed()))
    left = {head: [room - ceil(size) for size in model.ends_memory(head)] for head in heads}
    best: Plan | None = None
    stages = []
    for stage, count in enumerate(cut):
        most = max(left[head][stage] for head in heads)
        if (solve := _stage(task, stage, count, most)) is None:
            return None
        stages.append(solve)
    for head in heads:
        chosen: list[Strategy] = []
        memory = []
        for solve, mine in zip(stages, left[head], strict=True):
            part, spare = solve(mine)
            if not part:
                break
            chosen += part
            memory.append(budget - spare)
        else:
            seconds = model.pipeline(chosen, cut, model.ends(head)[1])
            if seconds < limit:
                limit = seconds
                best = Plan(seconds, model.chunks, task.pp, tuple(cut), tuple(chosen), head, tuple(memory))
    return best


Solve = Callable[[int], tuple[list[Strategy], int]]


def _stage(task: Task, stage: int, count: int, most: int) -> Solve | None:
    """What gives the strategies of one stage's layers in so many MB, up to `most`, and the MB left.

    The table is made when it is first asked for: where all layers can have the quickest strategy none is.
    """
    model = task.model
    kept = undominated(task, stage)
    need = np.array([[ceil(size) for _, _, size in kept]] * count, dtype=np.int64)
    if most < 0 or need[0].min() * count > most:
        return None
    names = [each for each, _, _ in kept]
    times = np.array([[time for _, time, _ in kept]] * count)
    change = np.array([[model.change(a, b, task.world) for b in names] for a in names])
    quickest = int(times[0].argmin())
    whole = int(need[0][quickest]) * count
    made: list[tuple[Floats, npt.NDArray[np.signedinteger]]] = []

    def solve(room: int) -> tuple[list[Strategy], int]:
        if whole <= room:
            return [names[quickest]] * count, room - whole
        if room < 0:
            return [], -1
        if not made:
            made.append(table(need, times, change, most))
        chosen, _, left = follow(*made[0], need, room)
        return [names[number] for number in chosen], left

    return solve


def undominated(task: Task, stage: int) -> list[tuple[Strategy, float, float]]:
    """(strategy, seconds, MB): without those that another one of the same width beats in both."""
    model = task.model
    every = []
    for each in task.allowed():
        every.append((each, model.layer(each)[0], model.memory(each, stage)))
    every.sort(key=lambda entry: (entry[1], entry[2], entry[0].sharding == "zero3", entry[0]))
    found: list[tuple[Strategy, float, float]] = []
    for entry in every:
        same = [other for other in found if other[0].width == entry[0].width]
        if all(other[2] > entry[2] for other in same):
            found.append(entry)
    return found


def uniform(profile: Profile, batch: int, budget: int, world: int = 8) -> Plan | None:
    """The best plan in which all layers have one strategy: the baseline."""
    best: Plan | None = None
    room = budget - int(budget * CACHE) if budget // 1024 > 20 else budget
    for task in _tasks(profile, batch, world, room):
        cut = even(profile.layers, task.pp)
        for each in task.allowed():
            head = each._replace(checkpoint=False)
            taken = [ceil(size) + task.buffer for size in task.model.ends_memory(head)]
            used = [
                taken[stage] + count * ceil(task.model.memory(each, stage)) for stage, count in enumerate(cut)
            ]
            if max(used) > room:
                continue
            whole, inner = task.model.layer(each)
            ends = task.model.ends(head)[1]
            seconds = pipeline_seconds(
                [count * inner + end for count, end in zip(cut, ends, strict=True)],
                [count * whole for count in cut],
                task.model.chunks,
            )
            if best is None or seconds < best.seconds:
                spare = budget - room
                best = Plan(
                    seconds, task.model.chunks, task.pp, cut, (each,) * profile.layers, head,
                    tuple(size + spare for size in used),
                )  # fmt: skip
    return best
