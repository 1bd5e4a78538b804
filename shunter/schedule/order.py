"""What a builder returns: the stages' ranks, and what each rank does one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from shunter.schedule.action import Action


@dataclass(frozen=True)
class Order:
    """placement[s] is the rank that holds stage s; actions[r] is what rank r does, in order."""

    placement: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    microbatches: int

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
