"""Which chunk of keys and values goes from whom to whom, and when; every rank derives the same list.

A chunk goes from its owner down the ranks, from r to r - 1 and from 0 to the last, but stops only at those
that see some of it. Where rows are causal and nothing else, an early chunk (j of rank j) is seen by all, a
later one (2 n - 1 - j) by the ranks below j alone: it makes j hops instead of n - 1, and a quarter of the
usual ring's traffic falls away. With a window shorter than a chunk, each makes one hop; documents that end
with the chunks send nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from shunter.layout.context_traffic import chunk_length
from shunter.parallel.context.sight import Sight
from shunter.parallel.context.zigzag import chunks


@dataclass(frozen=True)
class Way:
    """A chunk is with its owner at step 0, and with stops[s - 1] at step s. Ranks are places among peers."""

    owner: int
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Hop:
    """A chunk, or its gradient so far, goes from one rank to another (places among the peers)."""

    chunk: int
    source: int
    target: int


@dataclass(frozen=True)
class Routes:
    """What travels during each step.

    keys[s]:  chunks that are computed with at step s + 1
    grads[s]: gradients that were added to at step s - 1: onwards, or home to the owner from the last stop
    """

    ways: dict[int, Way]
    keys: list[list[Hop]]
    grads: list[list[Hop]]

    @classmethod
    def plan(cls, sight: Sight, size: int) -> Routes:
        """For rows of `sight` in zigzag order over `size` ranks."""
        step = chunk_length(sight.length, size)
        spans = [range(chunk * step, (chunk + 1) * step) for chunk in range(2 * size)]
        ways = {}
        for owner in range(size):
            others = [(owner - turn) % size for turn in range(1, size)]
            for chunk in chunks(owner, size):
                stops = [
                    other
                    for other in others
                    if any(sight.sees(spans[place], spans[chunk]) for place in chunks(other, size))
                ]
                ways[chunk] = Way(owner, tuple(stops))
        return cls.along(ways)

    @classmethod
    def along(cls, ways: dict[int, Way]) -> Routes:
        """The messages of given ways."""
        turns = max(len(way.stops) for way in ways.values())
        keys: list[list[Hop]] = [[] for _ in range(turns)]
        grads: list[list[Hop]] = [[] for _ in range(turns + 2)]
        for chunk, way in ways.items():
            places = (way.owner, *way.stops)
            for turn, stop in enumerate(way.stops):
                keys[turn].append(Hop(chunk, places[turn], stop))
                after = places[turn + 2] if turn + 2 < len(places) else way.owner
                grads[turn + 2].append(Hop(chunk, stop, after))
        return cls(ways, keys, grads)

    def sent(self, index: int) -> tuple[int, int]:
        """Chunks of keys and values that a rank sends in one pass, and gradients of such chunks."""
        counts = [
            sum(hop.source == index for hops in side for hop in hops) for side in (self.keys, self.grads)
        ]
        return counts[0], counts[1]
