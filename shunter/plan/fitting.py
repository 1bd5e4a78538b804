"""What would fit where a model does not: a larger cluster, a smaller batch, a shorter row.

Imports without torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.estimate import estimate
from shunter.plan.space import Fixed, divisors, space


def fits_nowhere(question: Question, fixed: Fixed, room: float, least: float) -> ShunterError:
    """The error, with what would do. room: bytes of the largest device, or the budget; least: of the fullest
    rank in the leanest layout."""
    hints = []
    if (nodes := smallest_cluster(question, fixed, room)) is not None:
        hints.append(f"{nodes} devices of this kind would do")
    for name, value in (
        ("batch", largest(question, fixed, room, "batch")),
        ("sequence", largest(question, fixed, room, "row")),
    ):
        if value:
            hints.append(f"here a {name} of {value} fits")
    text = "; ".join(hints) or "no larger cluster of this kind, and no smaller batch, would do"
    needs = (
        f"the smallest of all layouts needs {least / 1e9:.1f} GB of a device, which has {room / 1e9:.1f} GB"
    )
    if least <= room:  # the largest has room, but not every stage is on it
        needs = f"in no order do the devices have memory for every stage; the largest has {room / 1e9:.1f} GB"
    return ShunterError(
        f"the model fits nowhere: {needs}",
        mend=text[:1].upper() + text[1:] + ".",
    )


def smallest_cluster(question: Question, fixed: Fixed, room: float) -> int | None:
    """Devices of the smallest cluster of that kind in which a layout fits: 2, 4, ... times this one, then
    by whole nodes in between. None where 256 times as many would not do."""
    fabric, block = question.fabric, question.fabric.block
    free = {name: value for name, value in fixed.items() if name not in ("dp", "fsdp")}

    def fit(world: int) -> bool:
        wider = _wider(question, world)
        return _fit(wider, free, room)

    world = fabric.world * 2
    while world <= fabric.world * 256:
        if fit(world):
            break
        world *= 2
    else:
        return None
    low, high = world // 2, world
    while high - low > block:
        middle = (low + high) // 2 // block * block
        if middle in (low, high):
            break
        low, high = (low, middle) if fit(middle) else (middle, high)
    return high


def _wider(question: Question, world: int) -> Question:
    """The question for more devices of the same kind. A batch that no longer divides is made to."""
    fabric = question.fabric
    levels = list(fabric.levels)
    if not levels or world > levels[-1].extent:
        last = levels[-1] if levels else None
        if len(levels) > 1 or (last is not None and last.extent > fabric.block):
            assert last is not None
            levels[-1] = replace(last, extent=world)
        elif last is not None:  # one node until now: as its links, a tenth as fast
            levels.append(replace(last, extent=world, bandwidth=last.bandwidth / 10))
    kinds = tuple(fabric.kinds[number % len(fabric.kinds)] for number in range(-(-world // fabric.block)))
    wider = replace(fabric, world=world, levels=tuple(levels), kinds=kinds, terrain=None)
    batch = -(-question.batch // world) * world if question.batch % world else question.batch
    return replace(question, fabric=wider, batch=max(question.batch, batch))


def _fit(question: Question, fixed: Fixed, room: float) -> bool:
    choices = space(question, fixed)
    return bool(len(choices)) and bool((estimate(question, choices).bytes <= room).any())


def largest(question: Question, fixed: Fixed, room: float, what: Literal["batch", "row"]) -> int | None:
    """The largest smaller batch (rows), or sequence (tokens), that fits; None where not one row does.

    First among the divisors of what was asked; then between the one that fits and the next, by halves, among
    multiples of what the layouts that fit need (data ranks; context and tensor ranks): what is more is taken
    to need more memory.
    """
    value = getattr(question, what)
    least = 16 if what == "row" else 1
    tried = divisors(value)[:-1]
    sizes = [size for size in reversed(tried) if size >= least]
    low = next((size for size in sizes if _fit(_of(question, what, size), fixed, room)), None)
    if low is None:
        return None
    above = [size for size in (*sizes, value) if size > low]
    step = _step(_of(question, what, low), fixed, room, what)
    step *= -(-least // step)
    below, beyond = low // step, -(-min(above) // step)
    while beyond - below > 1:
        middle = (below + beyond) // 2
        if _fit(_of(question, what, middle * step), fixed, room):
            below = middle
        else:
            beyond = middle
    return max(low, below * step)


def _of(question: Question, what: str, size: int) -> Question:
    return replace(question, batch=size) if what == "batch" else replace(question, row=size)


def _step(question: Question, fixed: Fixed, room: float, what: str) -> int:
    """What a batch, or a row, must be a multiple of for the least demanding layout that fits."""
    choices = space(question, fixed)
    fits = estimate(question, choices).bytes <= room
    needs = choices.data if what == "batch" else 2 * choices.cp * choices.tp
    return int(needs[fits].min())
