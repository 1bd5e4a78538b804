"""Which roles of reinforcement learning share which devices, by simulated cost (arXiv 2409.19256, section 6).

For every way to part the roles into sets (4 roles: 15), every allocation of the devices to the sets that
leaves none without memory, and every layout of each role on its set's devices: the seconds of an iteration
are, stage by stage (writing, preparation, learning), those of the slowest set, in which roles take turns. The
least wins.

A `Profile` tells what a role costs; `shunter.plan.role_costs` makes one of the planner's own cost model.
Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Protocol

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid

STAGES = ("writing", "preparation", "learning")


@dataclass(frozen=True)
class Candidate:
    """A role in one layout. seconds: by stage. held: bytes of a device that stay while others take their
    turn. needed: bytes of a device in its own turn, those held included."""

    layout: Hybrid
    seconds: Mapping[str, float]
    held: float
    needed: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Profile(Protocol):
    """memory: bytes of a device."""

    memory: float

    def candidates(self, role: str, devices: int) -> Sequence[Candidate]:
        """All layouts of a role on so many devices, whether or not they fit."""


@dataclass(frozen=True)
class Mapped:
    """sets: roles that share devices. devices: of each. chosen: by role. stages: seconds of each. looked:
    allocations that were compared; refused: those without memory."""

    sets: tuple[tuple[str, ...], ...]
    devices: tuple[int, ...]
    chosen: Mapping[str, Candidate]
    stages: Mapping[str, float]
    looked: int
    refused: int

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        return sum(self.stages.values())

    def explain(self) -> list[str]:
        """In sentences."""
        found = [
            f"{self.seconds:.3g} s an iteration: "
            + ", ".join(f"{stage} {seconds:.3g} s" for stage, seconds in self.stages.items())
        ]
        for members, count in zip(self.sets, self.devices, strict=True):
            layouts = "; ".join(f"{role} {_told(self.chosen[role].layout)}" for role in members)
            found.append(f"{count} devices: {layouts}")
        return [*found, f"{self.looked} allocations compared, {self.refused} without memory left out"]


def _told(layout: Hybrid) -> str:
    told = f"p{layout.p} t{layout.t} d{layout.d}"
    narrow = (layout.pg, layout.tg) != (layout.p, layout.t)
    return f"{told}, written with p{layout.pg} t{layout.tg}" if narrow else told


class Mapper:
    """The search. Layouts are kept by (set, devices): many allocations share them."""

    def __init__(self, roles: Sequence[str], profile: Profile, *, unit: int = 1) -> None:
        """unit: devices are given out in multiples of it."""
        self.roles, self.profile, self.unit = tuple(roles), profile, unit
        self.on = lru_cache(maxsize=None)(self._on)

    def best(self, devices: int, sets: Sequence[Sequence[str]] | None = None) -> Mapped:
        """The fastest on so many devices; sets: of this partition alone. Raises ShunterError where none has
        memory."""
        ways = [tuple(map(tuple, sets))] if sets is not None else list(partitions(self.roles))
        found: tuple[float, tuple[tuple[str, ...], ...], tuple[int, ...]] | None = None
        looked = refused = 0
        for way in ways:
            least = [self._least(members, devices) for members in way]
            for counts in allocations(devices // self.unit, len(way)):
                given = tuple(count * self.unit for count in counts)
                # Below the least of a set nothing fits: no layout has to be looked at.
                if any(low is None or have < low for low, have in zip(least, given, strict=True)):
                    refused += 1
                    continue
                stages = self.stages(way, given)
                if stages is None:
                    refused += 1
                    continue
                looked += 1
                seconds = sum(stages.values())
                if found is None or seconds < found[0]:
                    found = seconds, way, given
        if found is None:
            held = [
                min((c.needed for c in self.profile.candidates(r, devices)), default=0) for r in self.roles
            ]
            raise ShunterError(
                f"no placement on {devices} devices of {self.profile.memory / 1e9:.3g} GB has the "
                f"memory: the largest role needs {max(held) / 1e9:.3g} GB of a device at least",
                mend="Use more devices, or smaller models.",
            )
        _, way, given = found
        chosen: dict[str, Candidate] = {}
        for members, count in zip(way, given, strict=True):
            chosen |= self.on(members, count) or {}
        return Mapped(way, given, chosen, self.stages(way, given) or {}, looked, refused)

    def stages(self, sets: Sequence[tuple[str, ...]], devices: Sequence[int]) -> dict[str, float] | None:
        """Seconds of each stage; None where a set has no memory."""
        found = dict.fromkeys(STAGES, 0.0)
        for members, count in zip(sets, devices, strict=True):
            chosen = self.on(members, count)
            if chosen is None:
                return None
            for stage in STAGES:
                mine = sum(candidate.seconds.get(stage, 0.0) for candidate in chosen.values())
                found[stage] = max(found[stage], mine)
        return found

    def _least(self, members: tuple[str, ...], devices: int) -> int | None:
        """Devices on which a set has memory at least; None where it never has."""
        for count in range(self.unit, devices + 1, self.unit):
            if self.on(members, count) is not None:
                return count
        return None

    def _on(self, members: tuple[str, ...], devices: int) -> dict[str, Candidate] | None:
        """Layouts of a set's roles that fit beside each other; None where none do.

        Roles choose one after the other, each its fastest that leaves the others room."""
        each = {role: self.profile.candidates(role, devices) for role in members}
        ordered = [sorted(each[role], key=lambda it: it.total) for role in members]
        if not all(ordered):
            return None
        # The least that those which have not chosen yet will hold.
        later = [0.0]
        for candidates in reversed(ordered):
            later.insert(0, later[0] + min(it.held for it in candidates))
        chosen: list[Candidate] = []

        def fits(number: int, held: float, turn: float) -> bool:
            if held + later[number] + turn > self.profile.memory:
                return False
            if number == len(ordered):
                return True
            for candidate in ordered[number]:
                chosen.append(candidate)
                beside = max(turn, candidate.needed - candidate.held)
                if fits(number + 1, held + candidate.held, beside):
                    return True
                chosen.pop()
            return False

        return dict(zip(members, chosen, strict=True)) if fits(0, 0.0, 0.0) else None


def partitions(roles: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Every way to part roles into sets (Bell's number of them), roles in their order."""
    if not roles:
        yield ()
        return
    first, rest = roles[0], roles[1:]
    for way in partitions(rest):
        yield ((first,), *way)
        for number, members in enumerate(way):
            yield (*way[:number], (first, *members), *way[number + 1 :])


def allocations(devices: int, sets: int) -> Iterator[tuple[int, ...]]:
    """Every way to give all devices to the sets, at least one to each."""
    for borders in combinations(range(1, devices), sets - 1):
        ends = (0, *borders, devices)
        yield tuple(ends[i + 1] - ends[i] for i in range(sets))
