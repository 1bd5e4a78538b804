"""What it costs to lay a tensor out otherwise, and by which steps it is done (arXiv 2110.15032, table 2).

All figures are totals: elements or bytes that leave one device for another, of all devices together, whatever
link they take. They are exact for uneven parts too. A ring's or a tree's messages are counted once a hop, so
an all-reduce of T bytes over p devices moves 2 (p - 1) T.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from math import prod
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.layout.placement import (
    Broadcast,
    Partial,
    Placement,
    Placements,
    Split,
    check,
    extent,
    held,
    local_shape,
    places,
    told,
)
from shunter.layout.slices import Spread, moved

# How dear it is to make a tensor partial: "free" by the table, "dear" (4 T (p1 + p2), OneFlow's default,
# under which it is never chosen) or "forbidden".
ToPartial = Literal["free", "dear", "forbidden"]
Kind = Literal["slices", "reduce-scatter", "all-reduce", "embed"]


def table(
    source: Placement, target: Placement, size: float, producers: int, consumers: int | None = None
) -> float:
    """The published table: bytes moved when a tensor of `size` bytes is converted along one axis.

    consumers: how many devices take it, where they are others than the producers; None: the same devices.
    An all-to-all is counted for even parts; `moved_elements` is exact. Raises ShunterError from one reduction
    to another.
    """
    p, both = producers, (source, target)
    if consumers is None:
        match both:
            case (Split(i), Split(j)):
                return 0.0 if i == j else size * (p - 1) / p
            case (Split(), Broadcast()) | (Partial(), Split()):
                return size * (p - 1)
            case (Partial(), Broadcast()):
                return 2 * size * (p - 1)
            case (Partial(a), Partial(b)) if a != b:
                raise _other_reduction(source, target)
        return 0.0
    match both:
        case (Split() | Broadcast(), Broadcast()):
            return consumers * size
        case (Partial(), Broadcast()):
            return (p + consumers - 1) * size
        case (Partial(a), Partial(b)) if a != b:
            raise _other_reduction(source, target)
        case (Partial(), _):
            return p * size
    return size


def published(
    source: Placements,
    target: Placements,
    size: float,
    hierarchy: tuple[int, ...],
    to_partial: ToPartial = "free",
) -> float:
    """The published rule for several axes of one hierarchy: the axes' costs added up, and `size` more where
    two axes split one dim. It does not count that each copy along one axis has to be converted along another;
    `moved_elements` does.
    """
    if source == target:
        return 0.0
    cost = sum(table(a, b, size, p) for a, b, p in zip(source, target, hierarchy, strict=True))
    for placements in (source, target):
        dims = [it.dim for it in placements if isinstance(it, Split)]
        if len(set(dims)) < len(dims):
            return cost + size + surcharge(source, target, size, hierarchy, to_partial)
    return cost + surcharge(source, target, size, hierarchy, to_partial)


def surcharge(
    source: Placements, target: Placements, size: float, hierarchy: tuple[int, ...], to_partial: ToPartial
) -> float:
    """What a choice adds to the bytes: 1 where copies are cut (a tie-break: rather cut nothing), and what
    becoming partial costs."""
    more = 0.0
    for a, b, p in zip(source, target, hierarchy, strict=True):
        if isinstance(a, Broadcast) and isinstance(b, Split):
            more += 1.0
        if isinstance(b, Partial) and a != b and to_partial != "free":
            more += float("inf") if to_partial == "forbidden" else 4 * size * 2 * p
    return more


def unsupported(source: Placement, target: Placement, disjoint: bool = False) -> str:
    """Why OneFlow's graph mode refuses a conversion that the table prices; empty where it does not.

    Here they are executed; a choice can forbid them (`ToPartial`).
    """
    if isinstance(source, Split) and isinstance(target, Partial):
        return f"{source}->{target}: a part of the elements is no part of a sum"
    if disjoint and isinstance(source, Partial) and isinstance(target, Partial):
        return f"{source}->{target} between different devices: which consumer takes which part is not defined"
    return ""


@dataclass(frozen=True)
class Step:
    """One step on the same devices. axis: None where all devices take part (slices).

    slices:         ranges go from those who hold them to those who need them
    reduce-scatter: P -> S along one axis          all-reduce: P -> B along one axis
    embed:          S or B -> P along one axis; nothing moves
    """

    kind: Kind
    axis: int | None
    before: Placements
    after: Placements
    elements: int


@lru_cache(maxsize=1 << 16)
def steps(
    shape: tuple[int, ...], source: Placements, target: Placements, hierarchy: tuple[int, ...]
) -> tuple[Step, ...]:
    """The conversion that moves fewest elements, and among those takes fewest steps.

    Raises ShunterError for placements that are none of the tensor's, and from one reduction to another.
    """
    check(shape, source, hierarchy)
    check(shape, target, hierarchy)
    for a, b in zip(source, target, strict=True):
        if isinstance(a, Partial) and isinstance(b, Partial) and a != b:
            raise _other_reduction(a, b)
    order = count()
    queue: list[tuple[int, int, int, Placements, tuple[Step, ...]]] = [(0, 0, next(order), source, ())]
    seen: set[Placements] = set()
    while queue:
        elements, length, _, state, path = heapq.heappop(queue)
        if state == target:
            return path
        if state in seen:
            continue
        seen.add(state)
        for step in _steps_from(state, shape, source, target, hierarchy):
            if step.after not in seen:
                entry = (elements + step.elements, length + 1, next(order), step.after, (*path, step))
                heapq.heappush(queue, entry)
    raise AssertionError("every state leads to the target")


def moved_elements(
    shape: tuple[int, ...], source: Placements, target: Placements, hierarchy: tuple[int, ...]
) -> int:
    """Elements that change devices, exactly."""
    return sum(step.elements for step in steps(shape, source, target, hierarchy))


def _steps_from(
    state: Placements,
    shape: tuple[int, ...],
    source: Placements,
    target: Placements,
    hierarchy: tuple[int, ...],
) -> list[Step]:
    found = []
    partial = [axis for axis, it in enumerate(state) if isinstance(it, Partial)]
    if all(state[axis] == target[axis] for axis in partial):
        found.append(_slices(state, target, shape, hierarchy))
    dims = {it.dim for it in (*source, *target) if isinstance(it, Split)}
    dims |= {max(range(len(shape)), key=shape.__getitem__)} if shape else set()
    for axis, placement in enumerate(state):
        inner = {it.dim for it in state[axis + 1 :] if isinstance(it, Split)}
        others: list[Placement] = [Broadcast(), *(Split(dim) for dim in sorted(dims))]
        if isinstance(target[axis], Partial):
            others.append(target[axis])
        # The outer reduction is of what the inner one gives: another one goes first.
        mixed = any(isinstance(it, Partial) and it != placement for it in state[axis + 1 :])
        for other in others:
            after = (*state[:axis], other, *state[axis + 1 :])
            # What an inner axis has cut, an outer one can neither cut nor put together by itself.
            clear = not inner & {it.dim for it in (placement, other) if isinstance(it, Split)}
            if after == state:
                continue
            if isinstance(placement, Partial):
                if mixed:
                    continue
                if isinstance(other, Broadcast):
                    found.append(_reduce("all-reduce", axis, state, after, shape, hierarchy))
                elif isinstance(other, Split) and clear:
                    found.append(_reduce("reduce-scatter", axis, state, after, shape, hierarchy))
            elif isinstance(other, Partial):
                if clear:
                    found.append(Step("embed", axis, state, after, 0))
            elif partial:  # else the one step to the target moves least
                found.append(_slices(state, after, shape, hierarchy))
    return found


def _slices(
    before: Placements, after: Placements, shape: tuple[int, ...], hierarchy: tuple[int, ...]
) -> Step:
    devices = tuple(range(prod(hierarchy)))
    source = Spread(shape, devices, hierarchy, before)
    return Step("slices", None, before, after, moved(source, replace(source, placements=after)))


def _reduce(
    kind: Kind,
    axis: int,
    before: Placements,
    after: Placements,
    shape: tuple[int, ...],
    hierarchy: tuple[int, ...],
) -> Step:
    size = hierarchy[axis]
    whole = sum(prod(local_shape(shape, after, hierarchy, place)) for place in places(hierarchy))
    elements = (size - 1) * whole if kind == "reduce-scatter" else 2 * (size - 1) * whole // size
    return Step(kind, axis, before, after, elements)


@dataclass(frozen=True)
class Route:
    """A conversion between any two sets of devices: steps on the producers, then slices to the consumers.

    middle: how the tensor lies between both; equal to `target` where the steps are all there is.
    """

    source: Spread
    steps: tuple[Step, ...]
    middle: Spread
    target: Spread

    @property
    def elements(self) -> int:
        """Elements that change devices."""
        own = sum(step.elements for step in self.steps)
        return own if self.middle == self.target else own + moved(self.middle, self.target)


@lru_cache(maxsize=1 << 12)
def route(source: Spread, target: Spread) -> Route:
    """How to get from one to the other; the devices may be the same, others, or some of both.

    Parts are added on the producers. Raises ShunterError for two shapes, or two reductions.
    """
    if source.shape != target.shape:
        raise ShunterError(f"a tensor of shape {list(source.shape)} cannot become {list(target.shape)}")
    if (source.devices, source.hierarchy) == (target.devices, target.hierarchy):
        path = steps(source.shape, source.placements, target.placements, source.hierarchy)
        return Route(source, path, target, target)
    ops = [{it.op for it in each.placements if isinstance(it, Partial)} for each in (source, target)]
    if all(ops) and ops[0] != ops[1]:
        raise ShunterError(
            f"{told(source.placements)} cannot become {told(target.placements)}: they add up otherwise"
        )
    best: Route | None = None
    for placements in _without_partial(source.placements, len(source.shape)):
        path = steps(source.shape, source.placements, placements, source.hierarchy)
        found = Route(source, path, replace(source, placements=placements), target)
        if best is None or found.elements < best.elements:
            best = found
    assert best is not None
    return best


def _without_partial(placements: Placements, dims: int) -> list[Placements]:
    """The same with parts added up: copied, or cut along any dim."""
    found: list[Placements] = [()]
    for it in placements:
        choices: list[Placement] = [it]
        if isinstance(it, Partial):
            choices = [Broadcast(), *(Split(dim) for dim in range(dims))]
        found = [(*before, choice) for before in found for choice in choices]
    return found


def largest_part(shape: tuple[int, ...], placements: Placements, hierarchy: tuple[int, ...]) -> int:
    """Elements that the fullest device holds."""
    return max(prod(extent(held(shape, placements, hierarchy, place))) for place in places(hierarchy))


def _other_reduction(source: Placement, target: Placement) -> ShunterError:
    return ShunterError(
        f"{source} cannot become {target}: parts of one reduction are no parts of another",
        mend="Convert to B or S first.",
    )
