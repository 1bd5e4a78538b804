"""What has to go from which device to which, from overlaps of the ranges that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from shunter.config.errors import ShunterError
from shunter.layout.placement import Partial, Placements, Ranges, Reduction, check, extent, held, places, told


@dataclass(frozen=True)
class Spread:
    """A tensor of a global shape over devices, which are numbers in the order of the hierarchy."""

    shape: tuple[int, ...]
    devices: tuple[int, ...]
    hierarchy: tuple[int, ...]
    placements: Placements

    def __post_init__(self) -> None:
        if len(self.devices) != prod(self.hierarchy) or len(set(self.devices)) != len(self.devices):
            wanted = " x ".join(map(str, self.hierarchy))
            raise ShunterError(
                f"{list(self.devices)} are not the {prod(self.hierarchy)} different devices of {wanted}"
            )
        check(self.shape, self.placements, self.hierarchy)

    @cached_property
    def held(self) -> dict[int, Ranges]:
        """Device -> its ranges."""
        places_ = places(self.hierarchy)
        return {
            device: held(self.shape, self.placements, self.hierarchy, place)
            for device, place in zip(self.devices, places_, strict=True)
        }

    @cached_property
    def terms(self) -> dict[int, tuple[int, ...]]:
        """Device -> which of the parts that are to be added it holds: its place on each partial axis."""
        partial = [axis for axis, it in enumerate(self.placements) if isinstance(it, Partial)]
        places_ = places(self.hierarchy)
        return {
            device: tuple(place[axis] for axis in partial)
            for device, place in zip(self.devices, places_, strict=True)
        }

    def place(self, device: int) -> tuple[int, ...]:
        """The coordinates of a device."""
        return places(self.hierarchy)[self.devices.index(device)]


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements that one device hands to another, or keeps where both are one, as ranges of the whole."""

    sender: int
    receiver: int
    ranges: Ranges

    @property
    def elements(self) -> int:
        return prod(extent(self.ranges))


@lru_cache(maxsize=1 << 14)
def slices(source: Spread, target: Spread) -> tuple[Slice, ...]:
    """All that the devices of `target` need, each from one holder: from itself where it holds it.

    Copies share the sending. A partial axis of `source` has to be one of `target`, on the same devices: each
    part stays one. Along other partial axes of `target` the first device alone receives, and what the others
    hold is the neutral element. Raises ShunterError where parts would have to be added.
    """
    kept = _kept(source, target)
    groups: dict[tuple[tuple[int, ...], Ranges], list[int]] = {}
    for device, ranges in source.held.items():
        groups.setdefault((source.terms[device], ranges), []).append(device)
    found = []
    for index, (receiver, wanted) in enumerate(target.held.items()):
        term = target.terms[receiver]
        if any(place for axis, place in enumerate(term) if axis not in kept):
            continue
        mine = tuple(term[axis] for axis in kept)
        for (theirs, ranges), holders in groups.items():
            overlap = intersect(ranges, wanted)
            if theirs != mine or overlap is None:
                continue
            sender = receiver if receiver in holders else holders[index % len(holders)]
            found.append(Slice(sender, receiver, overlap))
    return tuple(found)


def _kept(source: Spread, target: Spread) -> list[int]:
    """Which of the target's partial axes are partial in the source too, counted among partial axes."""
    here = [axis for axis, it in enumerate(source.placements) if isinstance(it, Partial)]
    if not here:
        return []
    same = (source.devices, source.hierarchy) == (target.devices, target.hierarchy)
    if not same or any(source.placements[axis] != target.placements[axis] for axis in here):
        raise ShunterError(
            f"slices of {told(source.placements)} cannot become {told(target.placements)}: parts have to be "
            "added first"
        )
    there = [axis for axis, it in enumerate(target.placements) if isinstance(it, Partial)]
    return [there.index(axis) for axis in here]


def filler(source: Spread, target: Spread, device: int) -> Reduction | None:
    """The reduction whose neutral element a device that gets nothing holds; None where it gets a part."""
    for axis, (it, place) in enumerate(zip(target.placements, target.place(device), strict=True)):
        new = not (axis < len(source.placements) and isinstance(source.placements[axis], Partial))
        if isinstance(it, Partial) and new and place:
            return it.op
    return None


def intersect(a: Ranges, b: Ranges) -> Ranges | None:
    """What two boxes share; None where that is nothing."""
    both = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return None if any(begin >= end for begin, end in both) else both


def moved(source: Spread, target: Spread) -> int:
    """Elements that leave one device for another, of all devices together."""
    return sum(it.elements for it in slices(source, target) if it.sender != it.receiver)
