"""Two stages a rank in the shape of a V: ZB-V and DualPipeV.

The first rank holds the first and the last stage, so a micro-batch comes back where it began, the loss is
on the rank where the data is, and every rank holds as many activations as every other one.
"""

from __future__ import annotations

from shunter.config.errors import ShunterError
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from shunter.schedule.order import Order, vee


class _Rank:
    """A rank's actions as they are added; micro-batches are counted for each stage and operation."""

    def __init__(self, ranks: int, rank: int) -> None:
        self.down, self.up = rank, 2 * ranks - 1 - rank
        self.actions: list[Action] = []
        self.done: dict[tuple[int, str], int] = {}

    def count(self, stage: int, op: str) -> int:
        return self.done.get((stage, op), 0)

    def add(self, stage: int, op: str, paired: bool = False) -> None:
        """The next micro-batch of this operation; a whole backward counts as both of its halves."""
        name = INPUT if op == BACKWARD else op
        microbatch = self.count(stage, name)
        self.actions.append(Action(stage, op, microbatch, paired))
        self.done[stage, name] = microbatch + 1
        if op == BACKWARD:
            self.done[stage, WEIGHT] = self.count(stage, WEIGHT) + 1

    def backward(self, stage: int) -> None:
        """Both halves, one directly after the other."""
        self.add(stage, INPUT)
        self.add(stage, WEIGHT)


def zero_bubble_v(ranks: int, microbatches: int) -> Order:
    """ZB-V (arXiv 2401.10241, section 6): 1F1B's memory, and no bubble within any rank's span."""
    # The pattern is whole from 2 p - 1 micro-batches on; with fewer, those that do not exist are left out.
    full = max(2 * ranks - 1, microbatches)
    everything = []
    for number in range(ranks):
        rank = _Rank(ranks, number)
        for _ in range(2 * (ranks - number) - 1):
            rank.add(rank.down, FORWARD)
        for _ in range(number):
            rank.add(rank.up, FORWARD)
            rank.add(rank.down, FORWARD)
        for _ in range(ranks - number):
            rank.add(rank.up, FORWARD)
            rank.backward(rank.up)
        while rank.count(rank.up, FORWARD) < full:
            if rank.count(rank.down, FORWARD) < full:
                rank.add(rank.down, FORWARD)
            rank.backward(rank.down)
            rank.add(rank.up, FORWARD)
            rank.backward(rank.up)
        # Going down, the gradients of weights wait: first those that other ranks wait for.
        for _ in range(number):
            rank.add(rank.down, INPUT)
            rank.add(rank.up, INPUT)
        for _ in range(ranks - number):
            rank.add(rank.down, INPUT)
            rank.add(rank.down, WEIGHT)
        for stage in (rank.up, rank.down):
            while rank.count(stage, WEIGHT) < full:
                rank.add(stage, WEIGHT)
        everything.append(tuple(action for action in rank.actions if action.microbatch < microbatches))
    return Order(vee(ranks), tuple(everything), microbatches)


def dual_pipe_v(ranks: int, microbatches: int) -> Order:
    """DualPipeV: forwards overlap with backwards of other micro-batches (arXiv 2412.19437, section 3.2.1,
    cut in half along its symmetry).

    Raises ShunterError for fewer micro-batches than stages.
    """
    if microbatches < 2 * ranks:
        raise ShunterError(
            f"{microbatches} micro-batches are fewer than the {2 * ranks} stages",
            mend=f"Use at least {2 * ranks} micro-batches, or zbv.",
        )
    everything = tuple(tuple(_dual_rank(ranks, number, microbatches)) for number in range(ranks))
    return Order(vee(ranks), everything, microbatches)


def _dual_rank(ranks: int, number: int, microbatches: int) -> list[Action]:
    rank, after = _Rank(ranks, number), ranks - number - 1
    waiting: list[int] = []  # stages whose weight gradients are due, oldest first

    def split(stage: int) -> None:
        rank.add(stage, INPUT)
        waiting.append(stage)

    def weight() -> None:
        if waiting:
            rank.add(waiting.pop(0), WEIGHT)

    def both(forward: int, backward: int) -> None:
        rank.add(forward, FORWARD, paired=True)
        rank.add(backward, BACKWARD)

    for _ in range(2 * after):
        rank.add(rank.down, FORWARD)
    for _ in range(number + 1):
        rank.add(rank.down, FORWARD)
        rank.add(rank.up, FORWARD)
    for _ in range(after):
        split(rank.up)
        weight()
        rank.add(rank.up, FORWARD)
    for step in range(microbatches - 2 * ranks + number + 1):
        if step == 0 and after == 0:
            # The last rank has both stages of the turn: apart, the backward can begin at once.
            rank.add(rank.down, FORWARD)
            rank.add(rank.up, BACKWARD)
        else:
            both(rank.down, rank.up)
        both(rank.up, rank.down)
    for _ in range(after):
        rank.add(rank.up, BACKWARD)
        both(rank.up, rank.down)
    # Half way through the last backwards, weight gradients begin to wait, to fill the end.
    halves = 2 * (number + 1)
    turn = 2 * ((number + 1) // 2) + (1 - number % 2)
    for half in range(halves):
        stage = rank.up if half % 2 == 0 else rank.down
        if half >= turn:
            split(stage)
        else:
            rank.add(stage, BACKWARD)
    for _ in range(after):
        weight()
        split(rank.down)
    for _ in range(number + 1):
        weight()
    return rank.actions
