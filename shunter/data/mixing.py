"""How often each document of a mixture is shown: groups by weight, a budget, a limit on repeats.

Repeating a text up to four times is nearly as good as as much new text (Muennighoff et al. 2023, arXiv
2305.16264): the default limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EPOCHS = 4.0


@dataclass(frozen=True)
class Part:
    """What a group gives. size: of its documents shown once. wanted: by its weight. given: of it, not more
    than the limit on repeats lets it give, and what others could not give."""

    size: int
    wanted: float
    given: float

    @property
    def epochs(self) -> float:
        """How often a document is shown on average."""
        return self.given / self.size if self.size else 0.0


def shares(
    sizes: Mapping[str, int],
    weights: Mapping[str, float] | None,
    budget: int | None,
    epochs: float = EPOCHS,
    spread: bool = False,
) -> dict[str, Part]:
    """What each group gives to the mixture, in the unit of the sizes.

    weights: by group, of any sum; a group without one gives nothing; None: as the sizes are. budget: None: as
    much as the weights allow without showing any document more often than `epochs`. spread: what a group
    cannot give for that limit is taken from the others, by their weights; else the mixture is smaller.
    """
    given = {
        name: float(weights.get(name, 0.0)) if weights is not None else float(size)
        for name, size in sizes.items()
    }
    alive = {name: weight for name, weight in given.items() if weight > 0 and sizes[name] > 0}
    total = sum(alive.values())
    if not alive:
        return {name: Part(size, 0.0, 0.0) for name, size in sizes.items()}
    if budget is None:
        budget = int(min(epochs * sizes[name] * total / weight for name, weight in alive.items()))
    wanted = {name: budget * weight / total for name, weight in alive.items()}
    found = {name: min(want, epochs * sizes[name]) for name, want in wanted.items()}
    while spread:
        lack = budget - sum(found.values())
        room = {name: weight for name, weight in alive.items() if found[name] < epochs * sizes[name]}
        if lack < 1 or not room:
            break
        whole = sum(room.values())
        for name, weight in room.items():
            found[name] = min(found[name] + lack * weight / whole, epochs * sizes[name])
    return {name: Part(size, wanted.get(name, 0.0), found.get(name, 0.0)) for name, size in sizes.items()}


def copies(sizes: np.ndarray, ranks: np.ndarray, given: float) -> np.ndarray:
    """int64 per document of one group: how often it is shown, so that they sum to about `given`.

    Every document is shown the same number of times, and those with the least ranks once more: the last of
    these is the one with which the sum comes nearest.
    """
    size = int(sizes.sum())
    if not size or given <= 0:
        return np.zeros(len(sizes), np.int64)
    full = int(given // size)
    found = np.full(len(sizes), full, np.int64)
    order = np.argsort(ranks, kind="stable")
    sums = np.cumsum(sizes[order])
    # A document is shown once more when more than half of it fits.
    found[order[sums - sizes[order] / 2 < given - full * size]] += 1
    return found


def ranks(seed: int, names: Sequence[str]) -> np.ndarray:
    """uint64 per document, by its name alone: neither the order of reading nor other documents matter."""
    own = str(seed).encode()
    digests = (hashlib.blake2b(name.encode(), key=own, digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
