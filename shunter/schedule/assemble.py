"""From an order to a program: each node finds those it takes data from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shunter.config.errors import ShunterError
from shunter.schedule.action import (
    BACKWARD,
    FORWARD,
    HEAD_PART,
    INPUT,
    RECOMPUTE,
    STAGE_WIDE,
    VOCABULARY,
    WEIGHT,
    Action,
    named,
)
from shunter.schedule.meetings import meet
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Edge, Lane, Node, Program


class Visit(NamedTuple):
    """A stop of a micro-batch's route: this stage, or a part of it, on this rank."""

    stage: int
    rank: int
    part: str = ""

    def __str__(self) -> str:
        return f"{named(self.stage, self.part)}@{self.rank}"


Route = Sequence[Visit]
Key = tuple[int, str, int, int, str]  # rank, operation, stage, micro-batch, part


def assemble(
    order: Order,
    *,
    routes: Sequence[Route] | None = None,
    released_at_input: float = 0.0,
    kept: float = 0.0,
) -> Program:
    """The program in which each micro-batch takes its route forward, and the same route back.

    routes:            a route for each micro-batch; by default all stages in turn, each on its rank. A route
                       visits a stage once; its last stop may be the head part of a stage that it has been to
                       (arXiv 2502.19913: the way ends where it began, with the head beside the embedding).
    released_at_input: share of a stage's activations that the input's gradient releases; the weights'
                       gradient releases the rest.
    kept:              share of a stage's activations that its inputs are: what is held of a micro-batch that
                       is recomputed, until it is.

    Raises ShunterError where a rank does what its route does not ask for, does it twice, or leaves it out,
    and for a route that visits a stage twice.
    """
    share = _shares(order, routes)
    if routes is None:
        whole = tuple(Visit(stage, rank) for stage, rank in enumerate(order.placement))
        routes = [whole] * order.microbatches
    else:
        for microbatch, route in enumerate(routes):
            _refuse_twice(microbatch, route)
    # Without backwards nothing is kept for them.
    trains = any(action.op in (BACKWARD, INPUT) for actions in order.actions for action in actions)
    split = any(action.op == INPUT for actions in order.actions for action in actions)
    nodes: list[Node] = []
    lanes: dict[Lane, list[int]] = {}
    found: dict[Key, int] = {}
    pairs: list[int] = []
    for rank, actions in enumerate(order.actions):
        taken = share[rank]
        again = {(a.stage, a.microbatch, a.part) for a in actions if a.op == RECOMPUTE}
        memory = {
            FORWARD: taken if trains else 0.0,
            RECOMPUTE: taken * (1 - kept),
            BACKWARD: -taken,
            INPUT: -taken * released_at_input,
            WEIGHT: -taken * (1 - released_at_input) if split else 0.0,
        }
        begin = len(nodes)
        for stage, op, microbatch, paired, part in actions:
            id = len(nodes)
            key = (rank, op, stage, microbatch, part)
            if key in found and op not in STAGE_WIDE:
                raise ShunterError(
                    f"rank {rank} does {Action(stage, op, microbatch, part=part)} twice",
                    mend="A micro-batch visits a stage once; remove one of the two.",
                )
            found[key] = id
            if paired:
                pairs.append(id)
            held = memory.get(op, 0.0)
            if op == FORWARD and (stage, microbatch, part) in again:
                held *= kept
            nodes.append(Node(id, rank, COMPUTE_LANE, op, stage, microbatch, part, held))
        lanes[rank, COMPUTE_LANE] = list(range(begin, len(nodes)))
    edges = _edges(routes, found, nodes)
    program = Program(nodes, lanes, edges, (), frozenset(pairs))
    passes = any(node.op in VOCABULARY for node in nodes)
    return meet(program, order) if passes or order.collectives else program


def _shares(order: Order, routes: Sequence[Route] | None) -> list[float]:
    """What one stage's activations are of its rank's: 1 / stages on the rank. A part counts as a stage."""
    held: list[set[tuple[int, str]]] = [set() for _ in range(order.ranks)]
    for stage, rank in enumerate(order.placement):
        held[rank].add((stage, ""))
    for stage, rank, part in {visit for route in routes or () for visit in route}:
        if rank < order.ranks:
            held[rank].add((stage, part))
    return [1 / max(1, len(stages)) for stages in held]


def _refuse_twice(microbatch: int, route: Route) -> None:
    """Stages once each; a head part last, where its stage was."""
    at: dict[int, int] = {}
    for number, visit in enumerate(route):
        stage, rank, part = visit
        if part and part != HEAD_PART:
            raise ShunterError(
                f"micro-batch {microbatch} visits {visit}, and a stage has no part {part!r}",
                mend=f"The one part that a route may name is {HEAD_PART}.",
            )
        if part and number < len(route) - 1:
            raise ShunterError(
                f"micro-batch {microbatch} visits {visit} and then {route[number + 1]}",
                mend="The loss is made in the head part: let the route end there.",
            )
        if part and at.get(stage, rank) != rank:
            raise ShunterError(
                f"micro-batch {microbatch} visits stage {stage} on rank {at[stage]}, its head on {rank}",
                mend="A head part is where its stage is: its weights may be the embedding's.",
            )
        if not part and stage in at:
            twice = "twice" if at[stage] == rank else f"on rank {at[stage]} and again"
            raise ShunterError(
                f"micro-batch {microbatch} visits stage {stage} {twice} on rank {rank}",
                mend=f"Remove one stop, or let the route end in the stage's head: "
                f"{Visit(stage, at[stage], HEAD_PART)}.",
            )
        if not part:
            at[stage] = rank


def _edges(routes: Sequence[Route], found: dict[Key, int], nodes: Sequence[Node]) -> list[Edge]:
    """Forward along each route, back along it, and from each backward half to the other."""
    edges: list[Edge] = []
    used = 0
    trains = any(node.op in (BACKWARD, INPUT) for node in nodes)
    for microbatch, route in enumerate(routes):
        before = -1
        for visit in route:
            here = _need(found, visit, FORWARD, microbatch)
            used += 1
            if before >= 0:
                edges.append(Edge(before, here, "activation"))
            before = here
        if not trains:
            continue
        after, payload = before, ""  # the loss is where the last forward is
        for visit in reversed(route):
            stage, rank, part = visit
            forward = found[rank, FORWARD, stage, microbatch, part]
            whole = found.get((rank, BACKWARD, stage, microbatch, part))
            here = whole if whole is not None else _need(found, visit, INPUT, microbatch)
            used += 1
            edges.append(Edge(after, here, payload))
            if after != forward:
                edges.append(Edge(forward, here))
            again = found.get((rank, RECOMPUTE, stage, microbatch, part))
            if again is not None:
                used += 1
                edges += [Edge(forward, again), Edge(again, here)]
            if whole is None:
                weight = _need(found, visit, WEIGHT, microbatch)
                used += 1
                edges.append(Edge(here, weight))
            after, payload = here, "gradient"
    if used != sum(node.op not in STAGE_WIDE and node.op not in VOCABULARY for node in nodes):
        _complain_of_surplus(routes, nodes)
    return edges


def _need(found: dict[Key, int], visit: Visit, op: str, microbatch: int) -> int:
    stage, rank, part = visit
    here = found.get((rank, op, stage, microbatch, part))
    if here is None:
        action = Action(stage, op, microbatch, part=part)
        raise ShunterError(
            f"rank {rank} never does {action}, which micro-batch {microbatch} needs",
            mend="Add the action to the rank's order, or take the stage out of the micro-batch's route.",
        )
    return here


def _complain_of_surplus(routes: Sequence[Route], nodes: Sequence[Node]) -> None:
    visits = {(microbatch, *visit) for microbatch, route in enumerate(routes) for visit in route}
    for node in nodes:
        if node.op in STAGE_WIDE or node.op in VOCABULARY:
            continue
        if (node.microbatch, node.stage, node.rank, node.part) not in visits:
            raise ShunterError(
                f"{node} is not on the route of any micro-batch",
                mend="Remove the action, or add the stage to the micro-batch's route.",
            )
    for node in nodes:  # what is left: both a whole backward and its halves
        if node.op in (INPUT, WEIGHT):
            whole = node.action._replace(op=BACKWARD)
            raise ShunterError(
                f"{node} repeats a part of the whole backward {whole}",
                mend="Keep either the whole backward or its two halves.",
            )
