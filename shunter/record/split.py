"""A step's time rank by rank: what each computed, what its messages took, and how long it waited for others.

Of a collective the rank that comes last waits for nobody, so the shortest stay among the ranks is what it
takes, and what others stay longer is waiting. A message takes from when it is sent, or from when somebody
stands there for it if that is later; before, its receiver waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shunter.record.timeline import Timeline


class Call(NamedTuple):
    """A stay in one call, or in a part of it. kind: collective, send or recv. group, number: what all that
    take part know it by. begin, end: seconds, on a clock of all ranks."""

    kind: str
    group: str
    number: int
    begin: float
    end: float


@dataclass(frozen=True)
class Shares:
    """Seconds of one rank's step."""

    seconds: float
    compute: float
    communication: float
    waiting: float

    def data(self) -> dict[str, float]:
        """As JSON values."""
        return {name: float(f"{value:.6g}") for name, value in vars(self).items()}


@dataclass(frozen=True)
class Rank:
    """What one rank tells: when its step began and ended, and its calls."""

    begin: float
    end: float
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Rank:
        """From JSON values."""
        return cls(told["begin"], told["end"], tuple(Call(*call) for call in told["calls"]))


def split(ranks: Sequence[Rank]) -> tuple[list[Shares], Timeline]:
    """Of all ranks of a step; and when each did what, from the first begin."""
    least = _least(ranks)
    sent = {
        (call.group, call.number): call.begin for rank in ranks for call in rank.calls if call.kind == "send"
    }
    zero = min((rank.begin for rank in ranks), default=0.0)
    timeline, shares = Timeline(name="ranks"), []
    for number, rank in enumerate(ranks):
        left = dict(least)  # of each collective: what is still to be told as communication, from its end
        communication = waiting = 0.0
        at = rank.begin
        spans: list[tuple[str, float, float]] = []
        inside = [
            call for call in rank.calls if call.end > call.begin and rank.begin <= call.begin < rank.end
        ]
        for call in sorted(inside, key=lambda call: call.begin):
            begin, end = max(call.begin, at), min(call.end, rank.end)
            if end <= begin:
                continue
            if begin > at:
                spans.append(("compute", at, begin))
            if call.kind == "collective":
                takes = min(end - begin, left.get((call.group, call.number), 0.0))
                left[call.group, call.number] = left.get((call.group, call.number), 0.0) - takes
            elif call.kind == "recv":
                came = sent.get((call.group, call.number))
                takes = 0.0 if came is None else end - min(max(begin, came), end)
            else:
                takes = end - begin
            middle = max(begin, end - takes)  # rounding may not move it before its call
            if middle > begin:
                spans.append(("waiting", begin, middle))
            if end > middle:
                spans.append(("communication", middle, end))
            communication, waiting, at = communication + takes, waiting + (end - begin - takes), end
        if rank.end > at:
            spans.append(("compute", at, rank.end))
        for lane, begin, end in spans:
            timeline.add(number, lane, lane, begin - zero, end - zero)
        seconds = rank.end - rank.begin
        computed = max(seconds - communication - waiting, 0.0)
        shares.append(Shares(seconds, computed, communication, waiting))
    return shares, timeline


def _least(ranks: Sequence[Rank]) -> dict[tuple[str, int], float]:
    """The shortest stay in each collective."""
    found: dict[tuple[str, int], float] = {}
    for rank in ranks:
        stays: dict[tuple[str, int], float] = {}
        for call in rank.calls:
            if call.kind == "collective":
                key = call.group, call.number
                stays[key] = stays.get(key, 0.0) + call.end - call.begin
        for key, stay in stays.items():
            found[key] = min(found.get(key, stay), stay)
    return found
