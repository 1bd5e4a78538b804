"""Which layouts there are. Imports without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from math import prod

import numpy as np

from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.plan.practice import HALVES, RECOMPUTE, Practice

MOST_CHUNKS = 12

Fixed = Mapping[str, int | str]


def divisors(number: int) -> list[int]:
    """In order, 1 and the number included."""
    low = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return low + [number // size for size in reversed(low) if size * size != number]


def space(question: Question, fixed: Fixed) -> Choices:
    """All layouts of the cluster's devices for the question, and with what is fixed.

    Any divisor of the devices, not only powers of two. Left out is what cannot be, and what is never better:
    tensor parallelism wider than a block of fast links, context parts under 256 tokens, copies beside cut
    copies but where the cut ones fill whole blocks (as data moved once more between blocks costs more).
    """
    world, lines = question.fabric.world, []
    for degrees in grids(question, fixed):
        pp, data = degrees[0], degrees[1] * degrees[2]
        if question.batch % data:
            continue
        rows = question.batch // data
        for size in divisors(rows):
            if not _is(fixed, "microbatch", size):
                continue
            count = rows // size
            for schedule, chunks in _schedules(question, fixed, pp, count):
                if schedule == "zbv" and question.spec.tied and degrees[2] > 1:
                    continue  # both ends are on one rank, and fsdp cannot shard their weight for both
                for name in question.practice.recompute:
                    if name == "layer" and question.practice.offers and schedule in HALVES:
                        continue  # what is computed again would be held until the second half
                    if _is(fixed, "recompute", name):
                        line = (*degrees, size, SCHEDULES.index(schedule), chunks, RECOMPUTE.index(name))
                        lines.append(line)
    assert all(prod(line[:5]) == world for line in lines[:1])
    return Choices.of(np.array(lines, dtype=np.int64))


def row_parts(practised: Practice, cp: int, tp: int) -> int:
    """What a row's tokens must divide by: two parts for each of several context ranks, and each of them by
    the tensor ranks that have a part of the tokens (`train.layout_check.check_rows`)."""
    return (2 * cp if cp > 1 else 1) * (tp if practised.sequence else 1)


def _is(fixed: Fixed, name: str, value: int | str) -> bool:
    return name not in fixed or fixed[name] == value


def grids(question: Question, fixed: Fixed) -> Iterator[tuple[int, ...]]:
    """Degrees (pp, dp, fsdp, cp, tp, ep, etp) that `space` looks at, with what is fixed of them."""
    world, spec, fabric = question.fabric.world, question.spec, question.fabric
    for axis in ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp"):
        if axis not in question.practice.axes:
            if fixed.get(axis, 1) != 1:
                return
            fixed = {**fixed, axis: 1}
    for pp in divisors(world):
        if pp > spec.num_layers or not _is(fixed, "pp", pp):
            continue
        for tp in divisors(world // pp):
            heads = spec.num_heads % tp == 0 and max(spec.num_kv_heads, tp) % min(spec.num_kv_heads, tp) == 0
            if not heads or not _is(fixed, "tp", tp) or (tp > fabric.block and "tp" not in fixed):
                continue
            for cp in divisors(world // pp // tp):
                if not _is(fixed, "cp", cp) or question.row % row_parts(question.practice, cp, tp):
                    continue
                if cp > 1 and question.row // cp < 256 and "cp" not in fixed:
                    continue
                data = world // pp // tp // cp
                for fsdp in divisors(data):
                    dp = data // fsdp
                    if not _is(fixed, "fsdp", fsdp) or not _is(fixed, "dp", dp):
                        continue
                    whole = fsdp * cp * tp % fabric.block == 0 or fabric.world == fabric.block
                    if dp > 1 and fsdp > 1 and not whole and not ({"dp", "fsdp"} & fixed.keys()):
                        continue
                    for ep, etp in _experts(question, fixed, data * cp * tp):
                        yield pp, dp, fsdp, cp, tp, ep, etp


def _experts(question: Question, fixed: Fixed, ranks: int) -> Iterator[tuple[int, int]]:
    experts = question.spec.experts
    for ep in divisors(ranks) if experts is not None else [1]:
        if (experts is not None and experts.num_experts % ep) or not _is(fixed, "ep", ep):
            continue
        for etp in divisors(ranks // ep) if experts is not None else [1]:
            if etp > question.fabric.block or not _is(fixed, "etp", etp):
                continue
            if experts is not None and experts.ffn_dim % etp:
                continue
            yield ep, etp


def _schedules(question: Question, fixed: Fixed, pp: int, count: int) -> Iterator[tuple[str, int]]:
    """Names and stages a rank; one rank has no pipeline."""
    layers = question.spec.num_layers
    for name in SCHEDULES:
        if name not in question.practice.schedules or not _is(fixed, "schedule", name):
            continue
        if pp == 1:
            if name in ("1f1b", fixed.get("schedule")) and _is(fixed, "chunks", 1):
                yield name, 1
            continue
        if name == "gpipe" and "schedule" not in fixed:
            continue  # 1F1B takes as long in less memory
        if name == "interleaved-1f1b":
            if count % pp:
                continue
            most = min(MOST_CHUNKS, layers // pp) if "chunks" not in fixed else layers // pp
            sizes: Sequence[int] = range(2, most + 1)
        elif name == "zbv":
            sizes = [2] if 2 * pp <= layers and pp <= 512 else []
        else:
            sizes = [1]
        for chunks in sizes:
            if _is(fixed, "chunks", chunks):
                yield name, chunks


def ordered_strategies(devices: int, *, alone: bool = True, recompute: bool = False) -> int:
    """Galvatron's strategies of a layer on so many devices (arXiv 2211.13878, section 3.2), over all numbers
    of stages: ordered lists of different paradigms out of data, sharded data and tensor parallelism,
    each with a power of two of at least 2 devices.

    alone: without those that mix data with sharded data. recompute: each with and without it. 34, 22 and 44
    for 8 devices.
    """
    total, stages = 0, 1
    while stages <= devices:
        total += len(strategies(devices // stages, alone=alone))
        stages *= 2
    return total * (2 if recompute else 1)


def strategies(devices: int, *, alone: bool = True) -> list[tuple[tuple[str, int], ...]]:
    """Of one stage of so many devices: (paradigm, degree) from the slowest varying to the fastest."""
    found: list[tuple[tuple[str, int], ...]] = []
    for length in range(4):
        for names in permutations(("dp", "sdp", "tp"), length):
            if alone and {"dp", "sdp"} <= set(names):
                continue
            found += [tuple(zip(names, degrees, strict=True)) for degrees in _powers(devices, length)]
    return found


def _powers(devices: int, length: int) -> Iterator[tuple[int, ...]]:
    """Ordered powers of two, each at least 2, whose product is `devices`."""
    if length == 0:
        if devices == 1:
            yield ()
        return
    degree = 2
    while degree <= devices:
        if devices % degree == 0:
            for rest in _powers(devices // degree, length - 1):
                yield degree, *rest
        degree *= 2
