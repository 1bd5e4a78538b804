"""Which chunk of keys and values goes from whom to whom, and when; every rank derives the same list.

The ring turns downwards: rank r hands what it holds to rank r - 1. Later chunks (2 n - 1 - j of rank j) are
seen by the ranks below j alone where rows are causal, and those come first; so a later chunk makes j hops
instead of n - 1, and a quarter of the ring's traffic falls away. A chunk goes no farther than to the last
rank that sees any of it, so documents and windows shorten its way too.
"""

from __future__ import annotations

from dataclasses import dataclass

from shunter.parallel.context.sight import Sight
from shunter.parallel.context.zigzag import chunk_length, chunks


@dataclass(frozen=True)
class Way:
    """A chunk's way from its owner downwards. At step s rank (owner - s) % n holds it, up to step `last`.

    first, last: steps of the first and the last rank, besides the owner, that see some of it; 0: nobody does.
    """

    owner: int
    chunk: int
    first: int
    last: int


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
    grads[s]: gradients that were added to at step s - 1: onwards, or home to the owner
    """

    size: int
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
            for chunk in chunks(owner, size):
                seen = [
                    turn
                    for turn in range(1, size)
                    for other in chunks((owner - turn) % size, size)
                    if sight.sees(spans[other], spans[chunk])
                ]
                ways[chunk] = Way(owner, chunk, min(seen, default=0), max(seen, default=0))
        return cls.along(ways, size)

    @classmethod
    def along(cls, ways: dict[int, Way], size: int) -> Routes:
        """The messages of given ways."""
        turns = max(way.last for way in ways.values())
        keys: list[list[Hop]] = [[] for _ in range(turns)]
        grads: list[list[Hop]] = [[] for _ in range(turns + 2)]
        for way in ways.values():
            for turn in range(way.last):
                held = (way.owner - turn) % size
                keys[turn].append(Hop(way.chunk, held, (held - 1) % size))
            if way.last:
                for turn in range(way.first, way.last):
                    held = (way.owner - turn) % size
                    grads[turn + 1].append(Hop(way.chunk, held, (held - 1) % size))
                held = (way.owner - way.last) % size
                grads[way.last + 1].append(Hop(way.chunk, held, way.owner))
        return cls(size, ways, keys, grads)

    def held(self, index: int, step: int) -> list[int]:
        """Chunks of another rank that this rank holds at a step."""
        owner = (index + step) % self.size
        return [chunk for chunk in chunks(owner, self.size) if self.ways[chunk].last >= step]
