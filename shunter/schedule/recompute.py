"""Recomputation in an order: forwards keep their inputs only, and are done again before their backward."""

from __future__ import annotations

from shunter.schedule.action import BACKWARD, FORWARD, INPUT, RECOMPUTE, Action
from shunter.schedule.order import Order


def recomputed(order: Order) -> Order:
    """The order with a recomputation right before each backward (arXiv 1811.06965, section 2.3).

    It needs nothing of other ranks, so it runs while the gradient is still on its way. A backward that is
    its rank's next action after its own forward has none: nothing else would use the memory in between. So
    GPipe's ranks skip that of the last micro-batch, and the last rank of 1F1B skips all.
    """
    actions = tuple(map(_rank, order.actions))
    return Order(order.placement, actions, order.microbatches, order.collectives)


def _rank(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    made: list[Action] = []
    at = 0
    while at < len(actions):
        end = at
        while actions[end].paired:  # a pair runs as one: nothing comes in between
            end += 1
        group = actions[at : end + 1]
        for action in group:
            if action.op in (BACKWARD, INPUT):
                forward = action._replace(op=FORWARD, paired=False)
                if made[-1:] != [forward]:
                    made.append(forward._replace(op=RECOMPUTE))
        made += group
        at = end + 1
    return tuple(made)
