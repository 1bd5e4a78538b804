"""How a tensor lies on devices: split, copied or in parts to be added, axis by axis (arXiv 2110.15032,
section 3).

Devices stand in a hierarchy such as (2, 4): row-major, the last axis fastest. A tensor has one placement an
axis, applied left to right: what the first axis gives a device is cut again by the second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal, TypeAlias

from shunter.config.errors import ShunterError

Reduction = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Split:
    """Cut along dim `dim`, in parts that differ by at most one in length."""

    dim: int

    def __str__(self) -> str:
        return f"S{self.dim}"


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The whole on every device."""

    def __str__(self) -> str:
        return "B"


@dataclass(frozen=True, slots=True)
class Partial:
    """On every device a tensor of the whole shape; their sum (or maximum, or minimum) is the tensor."""

    op: Reduction = "sum"

    def __str__(self) -> str:
        return "P" if self.op == "sum" else f"P{self.op}"


Placement: TypeAlias = Split | Broadcast | Partial
Placements: TypeAlias = tuple[Placement, ...]
# For each dim, the first index and the one after the last.
Ranges: TypeAlias = tuple[tuple[int, int], ...]

_WORD = re.compile(r"S(\d+)|B|P(max|min)?")


def parse(text: str) -> Placements:
    """`"S0,B"`: split on dim 0 over the first axis, copied over the second. P is a sum; Pmax, Pmin.

    Raises ShunterError for anything else.
    """
    found: list[Placement] = []
    for word in text.replace(" ", "").split(","):
        match = _WORD.fullmatch(word)
        if match is None:
            raise ShunterError(
                f"{word!r} is no placement", where=text, mend="Write S and a dim, B, P, Pmax or Pmin."
            )
        if match[1] is not None:
            found.append(Split(int(match[1])))
        else:
            found.append(Broadcast() if word == "B" else Partial(_reduction(match[2])))
    return tuple(found)


def _reduction(word: str | None) -> Reduction:
    return "max" if word == "max" else "min" if word == "min" else "sum"


def told(placements: Placements) -> str:
    """As `parse` reads it."""
    return ",".join(map(str, placements))


def pieces(length: int, parts: int) -> list[tuple[int, int]]:
    """The parts of a dim: the first `length` mod `parts` of them have one element more.

    torch.chunk rounds up instead, so that its last parts may be empty: 5 over 4 is 2, 2, 1 there, and
    2, 1, 1, 1 here.
    """
    small, larger = divmod(length, parts)
    ends = [part * small + min(part, larger) for part in range(parts + 1)]
    return list(pairwise(ends))


def places(hierarchy: Sequence[int]) -> list[tuple[int, ...]]:
    """The coordinates of all devices, in their order."""
    return list(product(*(range(size) for size in hierarchy)))


@lru_cache(maxsize=1 << 16)
def held(
    shape: tuple[int, ...], placements: Placements, hierarchy: tuple[int, ...], place: tuple[int, ...]
) -> Ranges:
    """What the device at `place` holds of a tensor, as index ranges; of a partial tensor, which elements."""
    ranges = [(0, length) for length in shape]
    for placement, size, index in zip(placements, hierarchy, place, strict=True):
        if isinstance(placement, Split):
            begin, end = ranges[placement.dim]
            first, after = pieces(end - begin, size)[index]
            ranges[placement.dim] = begin + first, begin + after
    return tuple(ranges)


def extent(ranges: Ranges) -> tuple[int, ...]:
    """The shape of what ranges cover."""
    return tuple(end - begin for begin, end in ranges)


def local_shape(
    shape: Sequence[int], placements: Placements, hierarchy: Sequence[int], place: Sequence[int]
) -> tuple[int, ...]:
    """The shape that the device at `place` holds."""
    return extent(held(tuple(shape), placements, tuple(hierarchy), tuple(place)))


def fits(shape: Sequence[int], placements: Placements, hierarchy: Sequence[int]) -> bool:
    """Whether every dim is there and is long enough that no device is left without an element."""
    left = list(shape)
    for placement, size in zip(placements, hierarchy, strict=True):
        if isinstance(placement, Split):
            if placement.dim >= len(left) or left[placement.dim] < size:
                return False
            left[placement.dim] //= size
    return True


def check(
    shape: Sequence[int], placements: Placements, hierarchy: Sequence[int], tensor: str = "the tensor"
) -> None:
    """Raises ShunterError where the placements are none of this tensor's on these devices."""
    if len(placements) != len(hierarchy):
        raise ShunterError(
            f"{tensor} has placements {told(placements)} for {len(placements)} axes, but the devices stand "
            f"in {len(hierarchy)}: {' x '.join(map(str, hierarchy))}",
            mend="Give one placement an axis.",
        )
    for placement in placements:
        if isinstance(placement, Split) and not 0 <= placement.dim < len(shape):
            raise ShunterError(
                f"{tensor} of shape {list(shape)} cannot be {told(placements)}: "
                f"it has no dim {placement.dim}",
                mend=f"Split one of dims 0 to {len(shape) - 1}." if shape else "A number cannot be split.",
            )


def dual(placements: Placements) -> Placements:
    """Where the gradient of a tensor lies: of a split one split alike, of copies partial, of parts copied.

    A copy's user knows its own part of the loss only, so the parts add up; all parts of a sum have the same
    gradient. Raises ShunterError for a maximum or a minimum, whose gradient depends on who won.
    """
    return tuple(_dual(placement) for placement in placements)


def _dual(placement: Placement) -> Placement:
    if isinstance(placement, Split):
        return placement
    if isinstance(placement, Broadcast):
        return Partial()
    if placement.op != "sum":
        raise ShunterError(f"no gradient passes through {placement}: it would have to know which part won")
    return Broadcast()


def mergeable(length: int, outer: int, inner: int) -> bool:
    """Whether (S, S) of a dim over [outer, inner] gives each device what one S over outer x inner does."""
    return min(outer, inner) == 1 or length % (outer * inner) in (0, 1, outer * inner - 1)
