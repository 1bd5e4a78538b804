"""The collectives of an order: nodes on a lane beside the compute, and what they wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.schedule.action import BACKWARD, EMBED, EMBED_BACK, FORWARD, HEAD, INPUT, SOFTMAX, VOCABULARY
from shunter.schedule.order import Order
from shunter.schedule.program import Edge, Lane, Node, Program

VOCABULARY_LANE = "vocabulary"
SHARE = "SHARE"  # the last stage's output goes to every rank
STATS = "STATS"  # the softmax's maximum and sum; in algorithm 2 the gradient of the last output too
HEAD_GRAD = "HEAD_GRAD"  # that gradient in algorithm 1
GATHER = "EMBED"  # the parts of the embedding are added up for the first stage
SPREAD = "EMBED_GRAD"  # the embedding's gradient goes to every rank
COLLECTIVES = frozenset({SHARE, STATS, HEAD_GRAD, GATHER, SPREAD})


def algorithm_of(order: Order) -> Literal[1, 2] | None:
    """The algorithm of Vocabulary Parallelism that the order's collectives are of; None without any."""
    ops = {action.op for joined in order.collectives for action in joined}
    return None if not ops else 1 if HEAD_GRAD in ops else 2


def meet(program: Program, order: Order) -> Program:
    """The program of an order with its collectives (see `vocabulary`).

    Raises ShunterError where a rank leaves out a pass or a collective, or does one twice.
    """
    ranks = range(order.ranks)
    nodes = list(program.nodes)
    lanes: dict[Lane, list[int]] = {lane: list(ids) for lane, ids in program.order.items()}
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    found: dict[tuple[int, str, int], int] = {}
    for rank in ranks:
        joined = order.collectives[rank] if rank < len(order.collectives) else ()
        for action in joined:
            if action.op not in COLLECTIVES:
                raise ShunterError(
                    f"rank {rank} joins {action}, which is no collective",
                    mend=f"Known are {', '.join(sorted(COLLECTIVES))}.",
                )
            node = Node(len(nodes), rank, VOCABULARY_LANE, action.op, action.stage, action.microbatch)
            _add(found, node)
            nodes.append(node)
            groups[action.op, action.microbatch].append(node.id)
            lanes.setdefault((rank, VOCABULARY_LANE), []).append(node.id)
    first, last = order.placement[0], order.placement[-1]
    for node in program.nodes:
        op = {INPUT: BACKWARD}.get(node.op, node.op)
        if op in VOCABULARY:
            _add(found, node)
        elif node.part:
            continue
        elif op == FORWARD and node.stage == 0:
            found[first, "first F", node.microbatch] = node.id
        elif op == BACKWARD and node.stage == 0:
            found[first, "first B", node.microbatch] = node.id
        if op == FORWARD and node.stage == order.stages - 1:
            found[last, "last F", node.microbatch] = node.id
        elif op == BACKWARD and node.stage == order.stages - 1:
            found[last, "last B", node.microbatch] = node.id
    trains = any(key[1] == "last B" for key in found)
    edges = list(program.edges)
    used = set()
    for before, after, only, payload in _waits(any(op == HEAD_GRAD for op, _ in groups), trains, first, last):
        for rank in ranks if only is None else (only,):
            for microbatch in range(order.microbatches):
                source, target = _need(found, rank, before, microbatch), _need(found, rank, after, microbatch)
                edges.append(Edge(source, target, payload))
                used |= {source, target}
    for id in found.values():
        if id not in used and (nodes[id].op in VOCABULARY or nodes[id].op in COLLECTIVES):
            raise ShunterError(f"{nodes[id]} ({nodes[id].lane}) serves nothing", mend="Remove it.")
    return Program(nodes, lanes, edges, [*program.rendezvous, *map(tuple, groups.values())], program.pairs)


def _waits(two: bool, trains: bool, first: int, last: int) -> Iterator[tuple[str, str, int | None, str]]:
    """(earlier, later, the only rank for which it holds, payload). two: algorithm 1, with two barriers."""
    yield EMBED, GATHER, None, ""
    yield GATHER, "first F", first, "activation"
    yield "last F", SHARE, last, "activation"
    yield SHARE, SOFTMAX, None, ""
    yield SOFTMAX, STATS, None, ""
    if not trains:
        return
    yield STATS, HEAD, None, ""
    if two:
        yield HEAD, HEAD_GRAD, None, ""
    yield (HEAD_GRAD if two else STATS), "last B", last, "gradient"
    yield "first B", SPREAD, first, "gradient"
    yield SPREAD, EMBED_BACK, None, ""


def _add(found: dict[tuple[int, str, int], int], node: Node) -> None:
    key = node.rank, node.op, node.microbatch
    if key in found:
        raise ShunterError(f"{node} ({node.lane}) is done twice", mend="Remove one of the two.")
    found[key] = node.id


def _need(found: dict[tuple[int, str, int], int], rank: int, op: str, microbatch: int) -> int:
    id = found.get((rank, op, microbatch))
    if id is None:
        raise ShunterError(
            f"rank {rank} never does {op} of micro-batch {microbatch}, which Vocabulary Parallelism needs",
            mend="Add it to the rank's lane.",
        )
    return id
