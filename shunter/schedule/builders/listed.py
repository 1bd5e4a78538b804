"""A list scheduler: whenever a rank is free, it takes the most urgent thing that it can.

Urgency, a number for each (operation, stage, micro-batch), decides between a forward and the gradient of an
input. Gradients of weights fill what would be idle, and compete for their turn only where they have to make
room. No rank ever holds more than its cap.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from shunter.config.errors import ShunterError
from shunter.schedule.action import FORWARD, INPUT, WEIGHT, Action
from shunter.schedule.costs import Costs, Links
from shunter.schedule.order import Order

Urgency = Callable[[str, int, int], float]  # (operation, stage, micro-batch) -> when it would like to begin

_SLACK = 1e-9  # times and memory are sums: what should be equal may differ by rounding


@dataclass
class _Rank:
    """What one rank has to do and what it holds."""

    stages: list[int]
    owed: dict[tuple[int, int], None] = field(default_factory=dict)  # forwards done, input's gradient not
    due: deque[tuple[int, int]] = field(default_factory=deque)  # gradients of weights
    held: float = 0.0
    free: float = 0.0
    actions: list[Action] = field(default_factory=list)


class ListScheduler:
    """Schedules `microbatches` over stages placed on ranks.

    placement: the rank of each stage.
    caps:      for each rank, the most activations it may hold, in micro-batches of a whole rank.
    reserve:   a forward may pass a more urgent one of another stage of its rank only if so many stages'
               activations still fit after it; otherwise early stages would take the room that late ones
               need to give anything back, and all would wait for ever. At least 1.
    released_at_input: share of a stage's activations that the input's gradient releases.
    links:   a message takes its latency and the time it occupies its link; that others occupy it too is
             left out.
    """

    def __init__(
        self,
        placement: Sequence[int],
        microbatches: int,
        costs: Costs,
        caps: Sequence[float],
        urgency: Urgency,
        *,
        reserve: int = 2,
        released_at_input: float = 0.0,
        links: Links | None = None,
    ) -> None:
        self.placement, self.microbatches = tuple(placement), microbatches
        self.caps, self.urgency = caps, urgency
        self.reserve, self.released_at_input = reserve, released_at_input
        stages = range(len(placement))
        self.seconds = {(op, s): costs.of(op, s) for op in (FORWARD, INPUT, WEIGHT) for s in stages}
        self.share = [1 / self.placement.count(rank) for rank in placement]
        self.ranks = [_Rank([s for s in stages if placement[s] == rank]) for rank in range(len(caps))]
        self.next_forward = [0] * len(placement)
        self.delay = delays(self.placement, links or Links())
        self.done: dict[tuple[str, int, int], float] = {}  # when the next operation can use the result
        self.arriving: list[float] = []  # heap of the moments at which messages arrive

    def run(self) -> tuple[Order, float]:
        """The order, and the time when its last operation ends.

        Raises ShunterError where a cap leaves no room for a micro-batch to come back.
        """
        total, finished, now = 3 * len(self.placement) * self.microbatches, 0, 0.0
        while True:
            moved = True
            while moved:  # what costs nothing lets another operation begin at the same moment
                moved = False
                for number, rank in enumerate(self.ranks):
                    if rank.free <= now + _SLACK and self._act(number, rank, now):
                        finished += 1
                        moved = True
            while self.arriving and self.arriving[0] <= now + _SLACK:
                heapq.heappop(self.arriving)
            later = [rank.free for rank in self.ranks if rank.free > now + _SLACK] + self.arriving[:1]
            if not later:
                break
            now = min(later)
        if finished < total:
            self._complain()
        actions = tuple(tuple(rank.actions) for rank in self.ranks)
        return Order(self.placement, actions, self.microbatches), max(rank.free for rank in self.ranks)

    def _act(self, number: int, rank: _Rank, now: float) -> bool:
        """Begin the most urgent operation that the rank could begin now. False if there is none."""
        limit, done, last = now + _SLACK, self.done, len(self.placement) - 1
        could: list[tuple[float, str, int, int]] = []
        for stage, microbatch in rank.owed:
            before = (FORWARD, stage, microbatch) if stage == last else (INPUT, stage + 1, microbatch)
            if done.get(before, limit + 1) <= limit:
                could.append((self.urgency(INPUT, stage, microbatch), INPUT, stage, microbatch))
        full = False
        heads = sorted(
            (self.urgency(FORWARD, stage, self.next_forward[stage]), stage)
            for stage in rank.stages
            if self.next_forward[stage] < self.microbatches
        )
        for passed, (wish, stage) in enumerate(heads):
            microbatch = self.next_forward[stage]
            if stage and done.get((FORWARD, stage - 1, microbatch), limit + 1) > limit:
                continue
            needed = self.share[stage] * (1 + passed * self.reserve)
            if rank.held + needed <= self.caps[number] + _SLACK:
                could.append((wish, FORWARD, stage, microbatch))
            else:
                full = True
        if rank.due and (full or not could):
            stage, microbatch = rank.due[0]
            could.append((self.urgency(WEIGHT, stage, microbatch), WEIGHT, stage, microbatch))
        if not could:
            return False
        self._do(rank, now, *min(could)[1:])
        return True

    def _do(self, rank: _Rank, now: float, op: str, stage: int, microbatch: int) -> None:
        rank.free = now + self.seconds[op, stage]
        delay = self.delay.get((op, stage), 0.0)
        self.done[op, stage, microbatch] = rank.free + delay
        if delay:
            heapq.heappush(self.arriving, rank.free + delay)
        rank.actions.append(Action(stage, op, microbatch))
        if op == FORWARD:
            self.next_forward[stage] += 1
            rank.owed[stage, microbatch] = None
            rank.held += self.share[stage]
        elif op == INPUT:
            del rank.owed[stage, microbatch]
            rank.due.append((stage, microbatch))
            rank.held -= self.share[stage] * self.released_at_input
        else:
            rank.due.popleft()
            rank.held -= self.share[stage] * (1 - self.released_at_input)

    def _complain(self) -> None:
        for number, rank in enumerate(self.ranks):
            for passed, stage in enumerate(rank.stages):
                microbatch = self.next_forward[stage]
                needed = self.share[stage] * (1 + passed * self.reserve)
                if microbatch < self.microbatches and rank.held + needed > self.caps[number] + _SLACK:
                    raise ShunterError(
                        f"rank {number} has no room for {Action(stage, FORWARD, microbatch)}: "
                        f"it may hold {self.caps[number]:g} micro-batches, holds {rank.held:g}, and "
                        "nothing that it could do gives any back",
                        mend="Raise the cap: one micro-batch a rank always suffices.",
                    )
        raise AssertionError("the list scheduler stopped with room left on every rank")


def delays(placement: Sequence[int], links: Links) -> dict[tuple[str, int], float]:
    """(operation, stage) -> time from the operation's end until the next stage's rank has its result."""
    found: dict[tuple[str, int], float] = {}
    for stage, (rank, other) in enumerate(pairwise(placement)):
        if rank != other:
            found[FORWARD, stage] = sum(links.of(rank, other, "activation"))
            found[INPUT, stage + 1] = sum(links.of(other, rank, "gradient"))
    return found


def need_room(placement: Sequence[int], caps: Sequence[float]) -> None:
    """Raise ShunterError where a rank cannot even hold one micro-batch, which it holds on all of its stages
    when it does the forward of the last of them."""
    stages: dict[int, list[int]] = {}
    for stage, rank in enumerate(placement):
        stages.setdefault(rank, []).append(stage)
    for rank, mine in sorted(stages.items()):
        fit = int(caps[rank] * len(mine) + _SLACK) if caps[rank] < 1 else len(mine)
        if fit < len(mine):
            why = (
                f", and each goes back only after all {len(mine)} of the rank's stages"
                if len(mine) > 1
                else ""
            )
            raise ShunterError(
                f"rank {rank} has no room for {Action(mine[max(fit, 0)], FORWARD, 0)}: it may hold "
                f"{caps[rank]:g} micro-batches of activations{why}",
                mend="Raise the cap: one micro-batch a rank always suffices.",
            )
