"""From an order to a program: each node finds those it takes data from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shunter.config.errors import ShunterError
from shunter.schedule.action import (
    BACKWARD,
    FORWARD,
    INPUT,
    RECOMPUTE,
    STAGE_WIDE,
    VOCABULARY,
    WEIGHT,
    Action,
)
from shunter.schedule.meetings import meet
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Edge, Lane, Node, Program


class Visit(NamedTuple):
    """A stop of a micro-batch's route: this stage, on this rank."""

    stage: int
    rank: int


Route = Sequence[Visit]


def assemble(
    order: Order,
    *,
    routes: Sequence[Route] | None = None,
    released_at_input: float = 0.0,
    kept: float = 0.0,
) -> Program:
    """The program in which each micro-batch takes its route forward, and the same route back.

    routes:            a route for each micro-batch; by default all stages in turn, each on its rank.
    released_at_input: share of a stage's activations that the input's gradient releases; the weights'
                       gradient releases the rest.
    kept:              share of a stage's activations that its inputs are: what is held of a micro-batch that
                       is recomputed, until it is.

    Raises ShunterError where a rank does what its route does not ask for, does it twice, or leaves it out.
    """
    if routes is None:
        whole = tuple(Visit(stage, rank) for stage, rank in enumerate(order.placement))
        routes = [whole] * order.microbatches
    share = _shares(order)
    # Without backwards nothing is kept for them.
    trains = any(action.op in (BACKWARD, INPUT) for actions in order.actions for action in actions)
    split = any(action.op == INPUT for actions in order.actions for action in actions)
    nodes: list[Node] = []
    lanes: dict[Lane, list[int]] = {}
    found: dict[tuple[int, str, int, int], int] = {}
    pairs: list[int] = []
    for rank, actions in enumerate(order.actions):
        taken = share[rank]
        again = {(action.stage, action.microbatch) for action in actions if action.op == RECOMPUTE}
        memory = {
            FORWARD: taken if trains else 0.0,
            RECOMPUTE: taken * (1 - kept),
            BACKWARD: -taken,
            INPUT: -taken * released_at_input,
            WEIGHT: -taken * (1 - released_at_input) if split else 0.0,
        }
        begin = len(nodes)
        for stage, op, microbatch, paired in actions:
            id = len(nodes)
            key = (rank, op, stage, microbatch)
            if key in found and op not in STAGE_WIDE:
                raise ShunterError(
                    f"rank {rank} does {Action(stage, op, microbatch)} twice",
                    mend="A micro-batch visits a stage once; remove one of the two.",
                )
            found[key] = id
            if paired:
                pairs.append(id)
            held = memory.get(op, 0.0)
            if op == FORWARD and (stage, microbatch) in again:
                held *= kept
            nodes.append(Node(id, rank, COMPUTE_LANE, op, stage, microbatch, "", held))
        lanes[rank, COMPUTE_LANE] = list(range(begin, len(nodes)))
    edges = _edges(routes, found, nodes)
    program = Program(nodes, lanes, edges, (), frozenset(pairs))
    passes = any(node.op in VOCABULARY for node in nodes)
    return meet(program, order) if passes or order.collectives else program


def _shares(order: Order) -> list[float]:
    """What one stage's activations are of its rank's: 1 / stages on the rank."""
    return [1 / max(1, order.placement.count(rank)) for rank in range(order.ranks)]


def _edges(
    routes: Sequence[Route], found: dict[tuple[int, str, int, int], int], nodes: Sequence[Node]
) -> list[Edge]:
    """Forward along each route, back along it, and from each backward half to the other."""
    edges: list[Edge] = []
    used = 0
    trains = any(node.op in (BACKWARD, INPUT) for node in nodes)
    for microbatch, route in enumerate(routes):
        before = -1
        for stage, rank in route:
            here = _need(found, rank, FORWARD, stage, microbatch)
            used += 1
            if before >= 0:
                edges.append(Edge(before, here, "activation"))
            before = here
        if not trains:
            continue
        after, payload = before, ""  # the loss is where the last forward is
        for stage, rank in reversed(route):
            forward = found[rank, FORWARD, stage, microbatch]
            whole = found.get((rank, BACKWARD, stage, microbatch))
            here = whole if whole is not None else _need(found, rank, INPUT, stage, microbatch)
            used += 1
            edges.append(Edge(after, here, payload))
            if after != forward:
                edges.append(Edge(forward, here))
            again = found.get((rank, RECOMPUTE, stage, microbatch))
            if again is not None:
                used += 1
                edges += [Edge(forward, again), Edge(again, here)]
            if whole is None:
                weight = _need(found, rank, WEIGHT, stage, microbatch)
                used += 1
                edges.append(Edge(here, weight))
            after, payload = here, "gradient"
    if used != sum(node.op not in STAGE_WIDE and node.op not in VOCABULARY for node in nodes):
        _complain_of_surplus(routes, nodes)
    return edges


def _need(
    found: dict[tuple[int, str, int, int], int], rank: int, op: str, stage: int, microbatch: int
) -> int:
    here = found.get((rank, op, stage, microbatch))
    if here is None:
        raise ShunterError(
            f"rank {rank} never does {Action(stage, op, microbatch)}, which micro-batch {microbatch} needs",
            mend="Add the action to the rank's order, or take the stage out of the micro-batch's route.",
        )
    return here


def _complain_of_surplus(routes: Sequence[Route], nodes: Sequence[Node]) -> None:
    visits = {(microbatch, stage, rank) for microbatch, route in enumerate(routes) for stage, rank in route}
    for node in nodes:
        if node.op in STAGE_WIDE or node.op in VOCABULARY:
            continue
        if (node.microbatch, node.stage, node.rank) not in visits:
            raise ShunterError(
                f"{node} is not on the route of any micro-batch",
                mend="Remove the action, or add the stage to the micro-batch's route.",
            )
    for node in nodes:  # what is left: both a whole backward and its halves
        if node.op in (INPUT, WEIGHT):
            whole = Action(node.stage, BACKWARD, node.microbatch)
            raise ShunterError(
                f"{node} repeats a part of the whole backward {whole}",
                mend="Keep either the whole backward or its two halves.",
            )
