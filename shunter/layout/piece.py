"""Which part of a whole tensor a rank holds.

A part is, along each dim, some ranges of the whole one after the other. Several ranges are needed because
the projections of a fused product are cut one by one: a rank holds its heads' rows of queries, of keys and of
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

Range = tuple[int, int]


class Box(NamedTuple):
    """A block without gaps: where it begins in the whole and in the part, and its size."""

    whole: tuple[int, ...]
    part: tuple[int, ...]
    size: tuple[int, ...]

    def slices(self, at: Sequence[int]) -> tuple[slice, ...]:
        """The block in a tensor in which it begins at `at`."""
        return tuple(slice(begin, begin + size) for begin, size in zip(at, self.size, strict=True))


@dataclass(frozen=True)
class Piece:
    """shape: of the whole. ranges: for each dim those held, in the order in which they stand in the part."""

    shape: tuple[int, ...]
    ranges: tuple[tuple[Range, ...], ...]

    @classmethod
    def full(cls, shape: Sequence[int]) -> Piece:
        """All of it."""
        return cls(tuple(shape), tuple(((0, size),) for size in shape))

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return tuple(sum(end - begin for begin, end in held) for held in self.ranges)

    @property
    def is_whole(self) -> bool:
        return self == Piece.full(self.shape)

    @property
    def numel(self) -> int:
        """Elements of the part."""
        count = 1
        for size in self.local_shape:
            count *= size
        return count

    def take(self, dim: int, *ranges: Range) -> Piece:
        """Of this part, these ranges along `dim`, counted in the part. Raises ValueError beyond its end."""
        found: list[Range] = []
        for begin, end in ranges:
            if not 0 <= begin <= end <= self.local_shape[dim]:
                raise ValueError(f"[{begin}, {end}) is not in the part's {self.local_shape[dim]}")
            at = 0
            for low, high in self.ranges[dim]:
                first, last = max(begin - at, 0), min(end - at, high - low)
                if first < last:
                    if found and found[-1][1] == low + first:
                        found[-1] = (found[-1][0], low + last)
                    else:
                        found.append((low + first, low + last))
                at += high - low
        changed = (*self.ranges[:dim], tuple(found), *self.ranges[dim + 1 :])
        return Piece(self.shape, changed)

    def share(self, dim: int, index: int, parts: int, blocks: Sequence[int] | None = None) -> Piece:
        """Part `index` of `parts` along `dim`, of each of the `blocks` (sizes, default: all as one).

        Sizes differ by at most one, the larger first.
        """
        taken, at = [], 0
        for size in blocks or [self.local_shape[dim]]:
            begin, end = balanced(size, parts, index)
            taken.append((at + begin, at + end))
            at += size
        return self.take(dim, *taken)

    def has(self, block: Sequence[Range]) -> bool:
        """Whether a block of the whole, by its range along each dim, lies in this part without gaps."""
        return self.find(block) is not None

    def find(self, block: Sequence[Range]) -> tuple[slice, ...] | None:
        """Where a block of the whole stands in this part; None where it does not lie in it without gaps."""
        found = []
        for held, (begin, end) in zip(self.ranges, block, strict=True):
            at = 0
            for low, high in held:
                if low <= begin and end <= high:
                    found.append(slice(at + begin - low, at + end - low))
                    break
                at += high - low
            else:
                return None
        return tuple(found)

    def boxes(self) -> Iterator[Box]:
        """Blocks without gaps that together are the part; none where it is empty."""
        placed = []
        for held in self.ranges:
            at, along = 0, []
            for begin, end in held:
                along.append((begin, at, end - begin))
                at += end - begin
            placed.append(along)
        for combination in product(*placed):
            whole, part, size = zip(*combination, strict=True) if combination else ((), (), ())
            if all(size):
                yield Box(tuple(whole), tuple(part), tuple(size))


def balanced(size: int, parts: int, index: int) -> Range:
    """Part `index` of `size` elements in `parts` that differ by at most one, the larger first."""
    base, odd = divmod(size, parts)
    begin = index * base + min(index, odd)
    return begin, begin + base + (index < odd)
