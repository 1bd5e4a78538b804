"""What a builder returns: the stages' ranks, and what each rank does one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.schedule.action import Action


@dataclass(frozen=True)
class Order:
    """placement[s] is the rank that holds stage s; actions[r] is what rank r does, in order.

    collectives[r] is what rank r joins beside its own work, in order; empty where there are none.
    """

    placement: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    microbatches: int
    collectives: tuple[tuple[Action, ...], ...] = ()

    @property
    def ranks(self) -> int:
        return len(self.actions)

    @property
    def stages(self) -> int:
        return len(self.placement)


def looped(ranks: int, chunks: int) -> tuple[int, ...]:
    """Placement of `chunks` stages on each rank, in rounds: rank r holds stages r, p + r, 2p + r, ..."""
    return tuple(stage % ranks for stage in range(ranks * chunks))


def vee(ranks: int) -> tuple[int, ...]:
    """Placement of two stages on each rank, down and up again: rank 0 holds the first and the last."""
    return (*range(ranks), *reversed(range(ranks)))


def place(kind: str, ranks: int, chunks: int | None = None) -> tuple[int, ...]:
    """The placement `looped` or `vee` by name. Raises ShunterError for a shape that it cannot have."""
    for name, value in (("ranks", ranks), ("chunks", 1 if chunks is None else chunks)):
        if value < 1:
            raise ShunterError(f"{name} are {value}", mend="It must be at least 1.")
    if kind == "vee":
        if chunks not in (None, 2):
            raise ShunterError(
                f"the placement vee has 2 stages on each rank, not {chunks}",
                mend="Leave --chunks out, or choose --placement looped.",
            )
        return vee(ranks)
    return looped(ranks, chunks or 1)
