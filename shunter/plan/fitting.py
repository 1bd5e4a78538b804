"""What would fit where a model does not: a larger cluster, a smaller batch, a shorter row.

Imports without torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.estimate import estimate
from shunter.plan.space import Fixed, row_parts, space

TIMES = 256  # as many devices are looked at
PATIENCE = 4.0  # seconds of looking at larger clusters
NEAR = 8  # steps beyond a bisection that are looked at one by one
LEAST = 16  # tokens of a row worth the name


class FitsNowhere(ShunterError):
    """room: bytes of the largest device, or the budget; least: of the fullest rank in the leanest layout.
    apart: degrees of their own for embedding and head were tried too."""

    def __init__(
        self, question: Question, fixed: Fixed, room: float, least: float, *, apart: bool = False
    ) -> None:
        self.question, self.fixed, self.room = question, fixed, room
        needs = (
            f"the smallest of all layouts needs {least / 1e9:.1f} GB of a device, which has "
            f"{room / 1e9:.1f} GB"
        )
        if least <= room:  # the largest has room, but not every stage is on it
            most = f"the largest has {room / 1e9:.1f} GB"
            needs = f"in no order do the devices have memory for every stage; {most}"
        elif apart and question.fabric.terrain is None:
            needs = needs.replace("the smallest of all layouts", "with one layout for all its parts it")
            needs += "; with degrees of their own embedding and head do not spare enough"
        super().__init__(f"the model fits nowhere: {needs}")

    def explained(self) -> ShunterError:
        """With what would do, which takes up to seconds to find."""
        hints = [_larger(self.question, self.fixed, self.room)]
        for name, what in _WHAT.items():
            if (value := largest(self.question, self.fixed, self.room, what)) is not None:
                hints.append(f"here a {name} of {value} fits")
        if len(hints) == 1:
            hints.append("here no batch and no sequence fits")
        text = "; ".join(hints)
        return ShunterError(self.what, mend=text[:1].upper() + text[1:] + ".")


_WHAT: dict[str, Literal["batch", "row"]] = {"batch": "batch", "sequence": "row"}


def _larger(question: Question, fixed: Fixed, room: float) -> str:
    fabric = question.fabric
    if fabric.terrain is not None:  # where devices differ: as many again of all of them, each as the smallest
        found, looked = smallest_cluster(question, fixed, min(room, fabric.memory))
        if found is None:
            return f"{looked // fabric.world} of this cluster would not do by the smallest of its devices"
        return f"{found // fabric.world} of this cluster would do, even if each device were its smallest"
    found, looked = smallest_cluster(question, fixed, room)
    if found is not None:
        return f"{found} devices of this kind would do"
    free = {name: value for name, value in fixed.items() if name not in ("dp", "fsdp")}
    if len(free) < len(fixed):
        found, _ = smallest_cluster(question, free, room)
        if found is not None:
            gone = " and ".join(name for name in ("dp", "fsdp") if name in fixed)
            return f"without {gone} {found} devices of this kind would do"
    return f"no cluster of this kind of up to {looked} devices would do with this batch"


def smallest_cluster(question: Question, fixed: Fixed, room: float) -> tuple[int | None, int]:
    """Devices of the smallest cluster of that kind in which a layout with this batch fits, and the largest
    number that was looked at: one more device after the other within a node, then whole nodes. None where
    TIMES as many would not do, or none was found within PATIENCE."""
    end, looked = time.perf_counter() + PATIENCE, question.fabric.world
    for world in _sizes(question, room):
        if _fit(_wider(question, world), fixed, room):
            return world, world
        looked = world
        if time.perf_counter() > end:
            break
    return None, looked


def _sizes(question: Question, room: float) -> Iterator[int]:
    """Devices of larger clusters, from as many as have memory for each parameter's state once."""
    world, node = question.fabric.world, question.fabric.node
    if question.fabric.terrain is not None:
        yield from range(2 * world, TIMES * world + 1, world)
        return
    state = question.practice.weights + question.practice.gradients
    state += min(question.practice.optimizer, question.practice.matrices or question.practice.optimizer)
    most = TIMES * world
    begin = max(world + 1, int(question.spec.num_parameters * state / room))
    yield from range(begin, min(node, most) + 1)
    yield from range(-(-max(begin, node + 1) // node) * node, most + 1, node)


def _wider(question: Question, world: int) -> Question:
    """The question for more devices of the same kind. Without links: what fits does not depend on them."""
    fabric = question.fabric
    block = min(world, fabric.node)
    kinds = tuple(fabric.kinds[number % len(fabric.kinds)] for number in range(-(-world // block)))
    wider = replace(fabric, world=world, levels=(), kinds=kinds, block=block, terrain=None)
    return replace(question, fabric=wider)


def _fit(question: Question, fixed: Fixed, room: float) -> bool:
    choices = space(question, fixed)
    return bool(len(choices)) and bool((estimate(question, choices, room).bytes <= room).any())


def largest(question: Question, fixed: Fixed, room: float, what: Literal["batch", "row"]) -> int | None:
    """The largest smaller batch (rows), or sequence (tokens), that fits; None where not one row does.

    For each number that layouts ask it to divide by (data ranks; context and tensor ranks) by bisection of
    its multiples, since what is more needs more memory, and a few beyond it one by one.
    """
    value = getattr(question, what)
    best = 0
    for step, more in _steps(question, fixed, what):

        def fits(count: int, step: int = step, more: Fixed = more) -> bool:
            return _fit(_of(question, what, count * step), more, room)

        low, high = best // step, (value - 1) // step + 1  # low: nothing to gain; high: not asked
        if low + 1 >= high:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        top = (value - 1) // step
        low = max([low, *(n for n in range(low + 1, min(low + NEAR, top) + 1) if fits(n))])
        if low * step > best and _fit(_of(question, what, low * step), fixed, room):
            best = low * step
    return best if best >= (LEAST if what == "row" else 1) else None


def _of(question: Question, what: str, size: int) -> Question:
    return replace(question, batch=size) if what == "batch" else replace(question, row=size)


def _steps(question: Question, fixed: Fixed, what: str) -> list[tuple[int, Fixed]]:
    """(what the size must be a multiple of, degrees that ask for it), the coarsest first: more ranks have
    room for more."""
    # A size that all degrees divide, so that none of them is left out.
    world = question.fabric.world
    wide = replace(question, batch=world * question.batch, row=2 * world * world * question.row)
    choices = space(wide, {name: value for name, value in fixed.items() if name != "microbatch"})
    found: dict[tuple[int, ...], int] = {}
    if what == "batch":
        size = fixed.get("microbatch", 1)
        assert isinstance(size, int)
        for dp, fsdp in sorted(set(zip(choices.dp.tolist(), choices.fsdp.tolist(), strict=True))):
            found[dp, fsdp] = dp * fsdp * size
        names = ("dp", "fsdp")
    else:
        for cp, tp in sorted(set(zip(choices.cp.tolist(), choices.tp.tolist(), strict=True))):
            found[cp, tp] = row_parts(question.practice, cp, tp)
        names = ("cp", "tp")
    every = [(step, {**fixed, **dict(zip(names, key, strict=True))}) for key, step in found.items()]
    return sorted(every, key=lambda each: -each[0])
