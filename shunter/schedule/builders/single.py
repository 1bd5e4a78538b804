"""One stage a rank: all forwards first (GPipe), or one forward and one backward in turn (1F1B)."""

from __future__ import annotations

from collections.abc import Sequence

from shunter.schedule.action import BACKWARD, FORWARD, Action
from shunter.schedule.order import Order, looped


def forward_only(ranks: int, microbatches: int, chunks: int = 1) -> Order:
    """Forwards alone, micro-batch after micro-batch within each round of stages."""
    actions = tuple(
        tuple(
            Action(chunk * ranks + rank, FORWARD, microbatch)
            for chunk in range(chunks)
            for microbatch in range(microbatches)
        )
        for rank in range(ranks)
    )
    return Order(looped(ranks, chunks), actions, microbatches)


def forward_waves(placement: Sequence[int], microbatches: int) -> Order:
    """Forwards alone over stages placed anywhere, those first that could be earliest.

    Stage s of micro-batch m belongs to wave s + m, and needs something of the wave before only: with each
    rank's work in order of waves nothing can wait for itself.
    """
    actions = tuple(
        tuple(
            Action(stage, FORWARD, wave - stage)
            for wave in range(len(placement) + microbatches - 1)
            for stage, holder in enumerate(placement)
            if holder == rank and 0 <= wave - stage < microbatches
        )
        for rank in range(1 + max(placement))
    )
    return Order(tuple(placement), actions, microbatches)


def gpipe(ranks: int, microbatches: int, *, fifo: bool = False) -> Order:
    """All forwards, then all backwards, the last micro-batch first (arXiv 1811.06965, section 2.3).

    fifo: backwards with the first micro-batch first, as torch does it. The gradients are the same; going
    back in reverse, the last stage need not recompute its last micro-batch.
    """
    back = range(microbatches) if fifo else range(microbatches - 1, -1, -1)
    actions = tuple(
        (
            *(Action(rank, FORWARD, microbatch) for microbatch in range(microbatches)),
            *(Action(rank, BACKWARD, microbatch) for microbatch in back),
        )
        for rank in range(ranks)
    )
    return Order(looped(ranks, 1), actions, microbatches)


def one_f_one_b(ranks: int, microbatches: int) -> Order:
    """Backwards as early as they can be; at most p - r micro-batches live on rank r (PipeDream-Flush,
    arXiv 2006.09503, section 2.3)."""
    everything = []
    for rank in range(ranks):
        ahead = min(ranks - rank, microbatches)
        actions = [Action(rank, FORWARD, microbatch) for microbatch in range(ahead)]
        for microbatch in range(microbatches):
            actions.append(Action(rank, BACKWARD, microbatch))
            if ahead + microbatch < microbatches:
                actions.append(Action(rank, FORWARD, ahead + microbatch))
        everything.append(tuple(actions))
    return Order(looped(ranks, 1), tuple(everything), microbatches)
