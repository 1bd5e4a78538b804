"""Which rank keeps the optimizer's state of what, where copies share it (ZeRO-1, arXiv 1910.02054, section
5.1). Imports without torch.

Ranks along the axes over which a gradient is added up hold the same weights. Each keeps the state of some
rows, cut as `fully_shard` cuts them: parts as large as possible, the last ones smaller or empty. A matrix
whose update is made of all of it (Muon's) is one rank's: they are given out by size, the largest first, each
to the rank that has least so far. Experts are copied along edp, the rest along the data and context axes, and
what tensor ranks hold alike, though each has other tokens, is shared between them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding

# Whether an update of a parameter, by its name and whole shape, is made of all of it.
Whole = Callable[[str, tuple[int, ...]], bool]


@dataclass(frozen=True)
class Kept:
    """Of one parameter. axes: whose ranks share its state. owner: the place among them that has all of it;
    None where each has some rows.

    holding: what this rank has of the whole; None where it has nothing. grid: as in `Holding`.
    """

    axes: tuple[str, ...]
    owner: int | None
    holding: Holding | None
    grid: Grid | None = None


def share_out(held: Mapping[str, Holding], grid: Grid, rank: int, whole: Whole) -> dict[str, Kept]:
    """Of the parameters that have copies, what `rank` keeps of each; all ranks that hold the same find the
    same owners. held: without what is not trained."""
    found: dict[str, Kept] = {}
    by_axes: dict[tuple[Grid | None, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, holding in held.items():
        of = holding.grid or grid
        if axes := tuple(axis for axis in holding.partial if of.degree(axis) > 1):
            by_axes[holding.grid, axes].append(name)
    for (other, axes), names in by_axes.items():
        ranks = (other or grid).peers(axes, rank)
        place = ranks.index(rank)
        owners = _owners(
            {n: prod(held[n].piece.shape) for n in names if whole(n, held[n].piece.shape)}, len(ranks)
        )
        for name in names:
            holding = held[name]
            owner = owners.get(name)
            if owner is None:
                mine: Holding | None = holding.sharded(place, len(ranks), axes)
            elif owner == place:
                partial = tuple(axis for axis in holding.partial if axis not in axes)
                mine = replace(holding, partial=partial, cut=(*holding.cut, *axes))
            else:
                mine = None
            found[name] = Kept(axes, owner, mine, other)
    return found


def holdings(held: Mapping[str, Holding], kept: Mapping[str, Kept]) -> dict[str, Holding]:
    """What a rank updates of each parameter: its rows, all of it, or (left out) nothing."""
    found = {}
    for name, holding in held.items():
        mine = kept[name].holding if name in kept else holding
        if mine is not None:
            found[name] = mine
    return found


def padded_rows(rows: int, ranks: int) -> int:
    """Rows of the largest part, which all parts are filled up to when they travel."""
    return -(-rows // ranks)


def _owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Whole sizes, so that ranks with other parts of the same matrices agree."""
    load = [0] * ranks
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        load[least] += sizes[name]
        found[name] = least
    return found


def in_buckets(sizes: Iterable[tuple[str, int]], most: int) -> list[list[str]]:
    """Names that travel together: in order, up to `most` bytes, or one alone that is larger."""
    found: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if found and filled + size <= most:
            found[-1].append(name)
            filled += size
        else:
            found.append([name])
            filled = size
    return found
