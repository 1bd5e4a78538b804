"""Two layouts of one model over the same ranks, one to learn in and one to write in (arXiv 2409.19256, 5).

Learning has p stages, t parts of each matrix and d copies; writing has fewer and wider parts, pg and tg, so
that each copy becomes p t / (pg tg) copies. Ranks are grouped so that what a rank holds for learning lies
inside what it holds for writing. With rank = D p t + P t + T, P = u (p / pg) + v and T = a (t / tg) + b:

    tensor group of writing     (D, u, v, b) fixed        pipeline group of writing    (D, a, v, b) fixed
    micro-copies                (D, u, a) fixed           copy of writing              D dg + v (t / tg) + b
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shunter.config.errors import ShunterError


class Seat(NamedTuple):
    """A rank's place: copy, stage and part while it learns; stage, part and copy while it writes."""

    d: int
    p: int
    t: int
    pg: int
    tg: int
    copy: int


@dataclass(frozen=True)
class Hybrid:
    """Degrees. Raises ShunterError, with the nearest legal degree, where pg does not divide p or tg not t.

    vanilla: ranks of writing are grouped as neighbours, as frameworks do that know nothing of the learning;
    what a rank holds for learning then lies outside of what it writes with.
    """

    p: int = 1
    t: int = 1
    d: int = 1
    pg: int = 1
    tg: int = 1
    vanilla: bool = False

    def __post_init__(self) -> None:
        for axis in ("p", "t", "d", "pg", "tg"):
            if getattr(self, axis) < 1:
                raise ShunterError(f"{axis} is {getattr(self, axis)}, but an axis has at least 1 rank")
        for narrow, wide in (("pg", "p"), ("tg", "t")):
            have, of = getattr(self, narrow), getattr(self, wide)
            if of % have:
                legal = [degree for degree in range(1, of + 1) if of % degree == 0]
                nearest = min(legal, key=lambda degree: abs(degree - have))
                raise ShunterError(
                    f"{narrow}={have} does not divide {wide}={of}: parts to write with are made of whole "
                    "parts to learn with",
                    mend=f"Use {narrow}={nearest}.",
                )

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.p * self.t * self.d

    @property
    def micro(self) -> int:
        """Copies that write, for each that learns."""
        return self.p * self.t // (self.pg * self.tg)

    @property
    def copies(self) -> int:
        """Copies that write, in all."""
        return self.d * self.micro

    def rank(self, d: int, p: int, t: int) -> int:
        """The rank of copy d, stage p and part t."""
        return (d * self.p + p) * self.t + t

    def seat(self, rank: int) -> Seat:
        """The place of a rank. Raises ValueError for one beyond the size."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is not among {self.size}")
        rest, t = divmod(rank, self.t)
        d, p = divmod(rest, self.p)
        if self.vanilla:
            rest, tg = divmod(rank % (self.p * self.t), self.tg)
            inner, pg = divmod(rest, self.pg)
            return Seat(d, p, t, pg, tg, d * self.micro + inner)
        pg, v = divmod(p, self.p // self.pg)
        tg, b = divmod(t, self.t // self.tg)
        return Seat(d, p, t, pg, tg, d * self.micro + v * (self.t // self.tg) + b)

    def micro_group(self, rank: int) -> tuple[int, ...]:
        """The ranks of one copy that write with the same part of the model, in order."""
        mine = self.seat(rank)
        return self._where(lambda it: (it.d, it.pg, it.tg) == (mine.d, mine.pg, mine.tg))

    def tensor_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the other parts of the matrices that this one writes with, by part."""
        mine = self.seat(rank)
        found = self._where(lambda it: (it.copy, it.pg) == (mine.copy, mine.pg))
        return tuple(sorted(found, key=lambda it: self.seat(it).tg))

    def pipeline_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the other stages of the copy that this one writes with, by stage."""
        mine = self.seat(rank)
        found = self._where(lambda it: (it.copy, it.tg) == (mine.copy, mine.tg))
        return tuple(sorted(found, key=lambda it: self.seat(it).pg))

    def model_group(self, rank: int) -> tuple[int, ...]:
        """The ranks of the copy that this one learns with."""
        d = self.seat(rank).d
        return self._where(lambda it: it.d == d)

    def _where(self, holds: object) -> tuple[int, ...]:
        assert callable(holds)
        return tuple(rank for rank in range(self.size) if holds(self.seat(rank)))


class Transition(NamedTuple):
    """Bytes of one rank, of M bytes of weights that are cut evenly (arXiv 2409.19256, table 2).

    received: from other ranks, from learning to writing. peak: of weights, at most. redundant: of weights
    that are held for learning beside those that are written with.
    """

    received: float
    peak: float
    redundant: float


def transition(style: str, layout: Hybrid, weights: float) -> Transition:
    """What a way of changing between the layouts costs.

    style: `hybridflow`; `vanilla`, weights gathered from the ranks of a copy; or `sharded`, from all ranks,
    as DeepSpeed-Chat gathers what ZeRO-3 has cut.
    """
    model, narrow = layout.p * layout.t, layout.pg * layout.tg
    if style == "hybridflow":
        return Transition(weights * (model - narrow) / (narrow * model), weights / narrow, 0.0)
    parts = {"vanilla": model, "sharded": layout.size}[style]
    return Transition(weights * (parts - 1) / parts, weights, weights / parts)
