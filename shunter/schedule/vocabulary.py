"""Vocabulary Parallelism (arXiv 2411.05288): every rank holds a part of the embedding and of the head.

Four passes for each micro-batch are put into any order: on every rank S (logits and softmax of its part of
the vocabulary), T (the gradient of its part of the head), IF (its part of the embedding) and IB (that one's
gradient). Between them the ranks meet, on a lane beside their compute:

    IF -> EMBED -> F ... F -> SHARE -> S -> STATS -> B ... B -> EMBED_GRAD -> IB
                                            STATS -> T                             (algorithm 2, section 4.2)
                                            STATS -> T -> HEAD_GRAD -> B           (algorithm 1, section 4.1)

The backward of the last stage waits for as many meetings as the algorithm has barriers; so each backward
moves back by as many repetitions of the order's pattern, and each rank holds one micro-batch more for each.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import replace

from shunter.config.errors import ShunterError
from shunter.schedule.action import (
    BACKWARD,
    COMPUTE,
    EMBED,
    EMBED_BACK,
    FORWARD,
    HEAD,
    HEAD_PART,
    INPUT,
    SOFTMAX,
    VOCABULARY,
    WEIGHT,
    Action,
)
from shunter.schedule.assemble import assemble
from shunter.schedule.costs import Costs
from shunter.schedule.meetings import GATHER, HEAD_GRAD, SHARE, SPREAD, STATS
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Program
from shunter.schedule.simulate import simulate

BARRIERS = {1: 2, 2: 1}  # of each algorithm
AHEAD = 2  # embeddings that are ready before the first stage needs them
BEHIND = 2  # gradients of embeddings that may wait for an idle moment

Pass = tuple[str, int]  # operation and micro-batch


def parallel_vocabulary(
    order: Order,
    algorithm: int,
    costs: Costs | None = None,
    head: float = 0.5,
    *,
    delay: int | None = None,
) -> Order:
    """The order with the passes of the vocabulary's parts, placed as a list scheduler would at these costs.

    costs: of the stages; head: of each of the head's three products over a whole micro-batch. Orders
    without backwards get IF and S alone.
    delay: by how many repetitions of the pattern backwards move back; by default one for each barrier, so
    that none is waited for. 0 is the interlaced pipeline, in which all ranks stop for each micro-batch's head
    together (the baseline of the paper's section 6).

    Raises ShunterError for an algorithm other than 1 and 2, and for an order with pairs or with the passes
    already.
    """
    if algorithm not in BARRIERS:
        raise ShunterError(
            f"there is no algorithm {algorithm} of Vocabulary Parallelism",
            mend="Choose 1 (two barriers, fewer products) or 2 (one barrier, a micro-batch less in memory).",
        )
    actions = [action for actions in order.actions for action in actions]
    if any(action.op in VOCABULARY for action in actions):
        raise ShunterError("the order has vocabulary passes already", mend="Add them once.")
    if any(action.paired for action in actions):
        raise ShunterError(
            "vocabulary passes cannot stand between actions that run as one",
            mend="Choose a schedule without pairs, such as zbv or v-half.",
        )
    costs = costs or Costs.even(order.placement)
    trains = any(action.op in (BACKWARD, INPUT) for action in actions)
    last = order.stages - 1
    return _Weave(order, algorithm, _spread(costs, order.ranks, last, head, algorithm, trains), delay).run()


def with_head(costs: Costs, program: Program, head: float) -> Costs:
    """Costs in which each of the head's three products takes `head` over a whole micro-batch.

    Where the program has vocabulary passes each rank has its part of them: before the backward one product,
    or two in algorithm 2 (the second is the gradient of the output), the others after it. Where routes end
    in the head part of a stage, that has all. Else the last stage has all: the paper's baseline.
    Embeddings, which are no products, cost a hundredth.
    """
    if ends := {node.stage for node in program.nodes if node.part == HEAD_PART and node.op in COMPUTE}:
        more_parts = {(op, end, HEAD_PART): head for op in (FORWARD, INPUT, WEIGHT) for end in ends}
        return replace(costs, parts={**costs.parts, **more_parts})
    last = max((node.stage for node in program.nodes if node.op in COMPUTE), default=0)
    ops = {node.op for node in program.nodes}
    if SOFTMAX in ops:
        return _spread(costs, program.ranks, last, head, 1 if HEAD_GRAD in ops else 2, HEAD in ops)
    more = {(op, last): costs.of(op, last) + head for op in (FORWARD, INPUT, WEIGHT)}
    more[BACKWARD, last] = costs.of(BACKWARD, last) + 2 * head
    return replace(costs, seconds={**costs.seconds, **more})


def _spread(costs: Costs, ranks: int, last: int, head: float, algorithm: int, trains: bool) -> Costs:
    before = 2 if algorithm == 2 and trains else 1
    return Costs(
        {
            (SOFTMAX, last): head * before / ranks,
            (HEAD, last): head * (3 - before) / ranks,
            (EMBED, 0): head / 100 / ranks,
            (EMBED_BACK, 0): head / 100 / ranks,
            **costs.seconds,
        }
    )


def delayed(order: Order, costs: Costs, intervals: int) -> list[list[Action]]:
    """Each rank's actions with all backwards `intervals` repetitions of the order's pattern later.

    Later in simulated time: what waits for something still comes after it, so nothing can wait for itself.
    """
    program = assemble(order)
    found = simulate(program, costs)
    later = intervals * found.ideal / order.microbatches

    def when(id: int) -> tuple[float, int]:
        return found.begin[id] + (0.0 if program.nodes[id].op == FORWARD else later), id

    return [
        [program.nodes[id].action for id in sorted(program.order.get((rank, COMPUTE_LANE), ()), key=when)]
        for rank in range(order.ranks)
    ]


class _Weave:
    """Simulates the ranks, and lets each do what is most urgent of what it could."""

    def __init__(self, order: Order, algorithm: int, costs: Costs, delay: int | None) -> None:
        self.order, self.algorithm, self.costs = order, algorithm, costs
        self.first, self.last = order.placement[0], order.placement[-1]
        self.end_stage = order.stages - 1
        self.trains = any(a.op in (BACKWARD, INPUT) for actions in order.actions for a in actions)
        self.main = delayed(order, costs, BARRIERS[algorithm] if delay is None else delay)
        # Of S and T in turn: so no rank keeps more than one micro-batch's softmax.
        slots: list[Pass] = [
            (op, microbatch)
            for microbatch in range(order.microbatches)
            for op in ((SOFTMAX, HEAD) if self.trains else (SOFTMAX,))
        ]
        self.slots = slots
        self.at = {kind: [0] * order.ranks for kind in ("main", "slots", EMBED, EMBED_BACK)}
        self.done: dict[Action | Pass, int] = defaultdict(int)  # how many ranks have done it
        self.begun = 0  # forwards of the first stage
        self.found: list[list[Action]] = [[] for _ in range(order.ranks)]
        self.met: list[Action] = []
        self.meetings: set[Pass] = set()
        self.back = {
            action.stage: action.op
            for actions in order.actions
            for action in actions
            if action.op in (BACKWARD, INPUT)
        }

    def run(self) -> Order:
        ranks = self.order.ranks
        idle = set(range(ranks))
        events: list[tuple[float, int, Action]] = []
        now = 0.0
        while True:
            for rank in sorted(idle):
                action = self._choose(rank)
                if action is None:
                    continue
                idle.discard(rank)
                self.found[rank].append(action)
                heapq.heappush(events, (now + self.costs.of(action.op, action.stage), rank, action))
            if not events:
                break
            now = events[0][0]
            while events and events[0][0] <= now:
                _, rank, action = heapq.heappop(events)
                idle.add(rank)
                self._finish(action)
        if any(at < len(actions) for at, actions in zip(self.at["main"], self.main, strict=True)):
            raise AssertionError("an order with vocabulary passes waits for itself")
        return Order(
            self.order.placement,
            tuple(map(tuple, self.found)),
            self.order.microbatches,
            (tuple(self.met),) * ranks,
        )

    def _choose(self, rank: int) -> Action | None:
        """Embeddings soon needed, S and T, the order's own, and what can wait where nothing else is left."""
        count = self.order.microbatches
        ahead = self.at[EMBED][rank]
        if ahead < count and ahead < self.begun + AHEAD:
            return self._take(rank, EMBED, Action(0, EMBED, ahead))
        slot, urgent = self._slot(rank)
        if slot is not None and urgent:
            return self._take(rank, "slots", slot)
        behind = self.at[EMBED_BACK][rank]
        due = self.trains and (SPREAD, behind) in self.meetings
        here, main = self.at["main"][rank], self.main[rank]
        action = main[here] if here < len(main) else None
        overdue = due and (SPREAD, behind + BEHIND) in self.meetings
        if action is not None and not overdue and self._ready(action):
            self.begun += action.op == FORWARD and action.stage == 0
            return self._take(rank, "main", action)
        if slot is not None and not overdue:
            return self._take(rank, "slots", slot)
        if due:
            return self._take(rank, EMBED_BACK, Action(0, EMBED_BACK, behind))
        return None

    def _slot(self, rank: int) -> tuple[Action | None, bool]:
        """The rank's next S or T if it could begin, and whether it should come before the order's own work.

        In algorithm 2 nothing waits for T but the next S, whose softmax takes its memory.
        """
        at = self.at["slots"][rank]
        if at == len(self.slots):
            return None, False
        op, microbatch = self.slots[at]
        if ((SHARE if op == SOFTMAX else STATS), microbatch) not in self.meetings:
            return None, False
        waits = op == HEAD and self.algorithm == 2 and (SHARE, microbatch + 1) not in self.meetings
        return Action(self.end_stage, op, microbatch), not waits

    def _take(self, rank: int, kind: str, action: Action) -> Action:
        self.at[kind][rank] += 1
        return action

    def _ready(self, action: Action) -> bool:
        stage, op, microbatch = action[:3]
        if op == FORWARD:
            if stage == 0:
                return (GATHER, microbatch) in self.meetings
            return bool(self.done[Action(stage - 1, FORWARD, microbatch)])
        if op in (BACKWARD, INPUT):
            if stage == self.end_stage:
                return (HEAD_GRAD if self.algorithm == 1 else STATS, microbatch) in self.meetings
            return bool(self.done[Action(stage + 1, self.back[stage + 1], microbatch)])
        return True

    def _finish(self, action: Action) -> None:
        """Note what is done, and whether a meeting took place by it."""
        stage, op, microbatch = action[:3]
        if op in VOCABULARY:
            self.done[op, microbatch] += 1
            meeting = {EMBED: GATHER, SOFTMAX: STATS}.get(op)
            if op == HEAD and self.algorithm == 1:
                meeting = HEAD_GRAD
            if meeting and self.done[op, microbatch] == self.order.ranks:
                self._meet(meeting, microbatch)
            return
        self.done[action] += 1
        if op == FORWARD and stage == self.end_stage:
            self._meet(SHARE, microbatch)
        elif op in (BACKWARD, INPUT) and stage == 0:
            self._meet(SPREAD, microbatch)

    def _meet(self, op: str, microbatch: int) -> None:
        self.meetings.add((op, microbatch))
        self.met.append(Action(0 if op in (GATHER, SPREAD) else self.end_stage, op, microbatch))
