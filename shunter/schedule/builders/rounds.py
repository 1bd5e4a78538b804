"""Several stages a rank in rounds: interleaved 1F1B, its zero-bubble form, and the looped orders.

Micro-batches pass in groups. A group passes all of a rank's stages before the next group comes, so the
table of (micro-batch, chunk) is the same for every rank, and only the number of forwards ahead differs.
"""

from __future__ import annotations

from shunter.config.errors import ShunterError
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from shunter.schedule.order import Order, looped

Table = list[tuple[int, int]]  # (micro-batch, chunk)


def group_size(ranks: int, microbatches: int, group: int | None = None) -> int:
    """The number of micro-batches that pass together: by default the smallest that works.

    Raises ShunterError where there are fewer micro-batches than ranks, or the last group would be shorter
    than the pipeline: its forwards would then wait for its own earlier chunks.
    """
    if microbatches < ranks:
        raise ShunterError(
            f"{microbatches} micro-batches are fewer than the {ranks} ranks",
            mend=f"Use at least {ranks} micro-batches, or a schedule with one stage a rank, such as 1f1b.",
        )
    if group is None:
        sizes = range(ranks, microbatches + 1)
        return next(size for size in sizes if microbatches % size == 0 or microbatches % size >= ranks)
    if not ranks <= group <= microbatches:
        raise ShunterError(
            f"a group of {group} micro-batches is not between {ranks} ranks and {microbatches} micro-batches",
            mend=f"Choose a group from {ranks} to {microbatches}.",
        )
    if 0 < microbatches % group < ranks:
        raise ShunterError(
            f"the last group has {microbatches % group} micro-batches, fewer than the {ranks} ranks",
            mend=f"Choose a group that leaves none or at least {ranks}; the smallest is "
            f"{group_size(ranks, microbatches)}.",
        )
    return group


def table(microbatches: int, chunks: int, group: int) -> Table:
    """Forward order of every rank (arXiv 2104.04473, section 2.2)."""
    return [
        (microbatch, chunk)
        for begin in range(0, microbatches, group)
        for chunk in range(chunks)
        for microbatch in range(begin, min(begin + group, microbatches))
    ]


def interleaved(ranks: int, microbatches: int, chunks: int = 2, *, group: int | None = None) -> Order:
    """Interleaved 1F1B: `chunks` times less bubble than 1F1B, for as many times the messages.

    Rank r runs ahead by 2 (p - r - 1) + (v - 1) N forwards. Twice the distance, because with paired
    blocking exchanges an earlier rank needs one more forward in flight a hop.
    """
    size = group_size(ranks, microbatches, group)
    forwards = table(microbatches, chunks, size)
    everything = []
    for rank in range(ranks):
        ahead = min(2 * (ranks - rank - 1) + (chunks - 1) * size, len(forwards))
        actions: list[Action] = []
        for step in range(len(forwards) + ahead):
            if step < len(forwards):
                actions.append(_forward(forwards, step, ranks, rank))
            if step >= ahead:
                actions.append(_backward(forwards, step - ahead, ranks, rank, chunks, BACKWARD))
        everything.append(tuple(actions))
    return Order(looped(ranks, chunks), tuple(everything), microbatches)


def interleaved_zero_bubble(
    ranks: int, microbatches: int, chunks: int = 1, *, group: int | None = None
) -> Order:
    """1F1B in which weight gradients wait until they fill the bubble: ZB1P (arXiv 2401.10241, section 2).

    Rank r runs p - r - 1 + (v - 1) N forwards ahead, and keeps r weight gradients back, so that every rank
    holds as much as the first one does.
    """
    size = group_size(ranks, microbatches, group) if chunks > 1 else microbatches
    forwards = table(microbatches, chunks, size)
    everything = []
    for rank in range(ranks):
        ahead = min(ranks - rank - 1 + (chunks - 1) * size, len(forwards))
        actions: list[Action] = []
        for step in range(len(forwards) + ahead):
            if step < len(forwards):
                actions.append(_forward(forwards, step, ranks, rank))
            if step >= ahead:
                done = step - ahead
                actions.append(_backward(forwards, done, ranks, rank, chunks, INPUT))
                if done >= rank:
                    actions.append(_backward(forwards, done - rank, ranks, rank, chunks, WEIGHT))
        late = range(max(0, len(forwards) - rank), len(forwards))
        actions += [_backward(forwards, step, ranks, rank, chunks, WEIGHT) for step in late]
        everything.append(tuple(actions))
    return Order(looped(ranks, chunks), tuple(everything), microbatches)


def looped_breadth_first(ranks: int, microbatches: int, chunks: int = 2) -> Order:
    """All micro-batches through one round before the next, and back in reverse (arXiv 2211.05953)."""
    return _all_then_all(ranks, microbatches, chunks, table(microbatches, chunks, microbatches))


def looped_depth_first(ranks: int, microbatches: int, chunks: int = 2, *, group: int | None = None) -> Order:
    """Groups of micro-batches through all rounds, one group after the other, and back in reverse."""
    size = group_size(ranks, microbatches, group)
    return _all_then_all(ranks, microbatches, chunks, table(microbatches, chunks, size))


def _all_then_all(ranks: int, microbatches: int, chunks: int, forwards: Table) -> Order:
    actions = tuple(
        (
            *(_forward(forwards, step, ranks, rank) for step in range(len(forwards))),
            *(Action(chunk * ranks + rank, BACKWARD, microbatch) for microbatch, chunk in reversed(forwards)),
        )
        for rank in range(ranks)
    )
    return Order(looped(ranks, chunks), actions, microbatches)


def _forward(forwards: Table, step: int, ranks: int, rank: int) -> Action:
    microbatch, chunk = forwards[step]
    return Action(chunk * ranks + rank, FORWARD, microbatch)


def _backward(forwards: Table, step: int, ranks: int, rank: int, chunks: int, op: str) -> Action:
    """Backwards follow the same table with the chunks the other way round."""
    microbatch, chunk = forwards[step]
    return Action((chunks - 1 - chunk) * ranks + rank, op, microbatch)
