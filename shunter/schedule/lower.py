"""From what ranks compute to what they do: messages between ranks, sharding, reductions.

Each direction between two ranks is a lane of its own (`to 1` on rank 0, `from 0` on rank 1), in which
messages keep the order in which they are made. So a send waits for nobody's compute, two ranks that send to
each other at the same time do not wait for each other, and one receive that is posted late delays its lane
only: what runs on gloo does not hang on NCCL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shunter.config.errors import ShunterError
from shunter.schedule.action import BACKWARD, COMPUTE, INPUT, REDUCE, RESHARD, UNSHARD, WEIGHT, Action
from shunter.schedule.program import COMPUTE_LANE, Edge, Lane, Node, Program

# What a payload is sent and received as. Payloads without a name of their own tell theirs beside it.
MESSAGES = {"activation": ("SEND_F", "RECV_F"), "gradient": ("SEND_B", "RECV_B")}
OTHER = ("SEND", "RECV")
SENDS = frozenset({"SEND", *(send for send, _ in MESSAGES.values())})
RECEIVES = frozenset({"RECV", *(receive for _, receive in MESSAGES.values())})


class Message(NamedTuple):
    """One end of a message: the action, and the payload where the action's name does not tell it."""

    action: Action
    payload: str = ""

    def __str__(self) -> str:
        return f"{self.action}:{self.payload}" if self.payload else str(self.action)


def lower(program: Program, *, shard: bool = False, reduce: bool = False) -> Program:
    """The program with its messages, and what else was asked for.

    shard:  weights are gathered before a stage's first use and given up after its last.
    reduce: gradients of a stage are reduced over its replicas after its last backward.

    Raises ShunterError if the program has messages already.
    """
    if has_messages(program):
        raise ShunterError(
            "the program has messages already", mend="Lower what ranks compute, without sends and receives."
        )
    if shard or reduce:
        program = _with_stage_actions(program, shard, reduce)
    place = {id: at for ids in program.order.values() for at, id in enumerate(ids)}
    crossing = sorted(_crossing(program), key=lambda edge: (place[edge.source], place[edge.target]))
    lanes: dict[Lane, list[Message]] = defaultdict(list)
    for edge in crossing:
        source, target = program.nodes[edge.source], program.nodes[edge.target]
        send, receive = ends(edge, program.nodes)
        lanes[source.rank, f"to {target.rank}"].append(send)
        lanes[target.rank, f"from {source.rank}"].append(receive)
    return attach(program, lanes)


def has_messages(program: Program) -> bool:
    """True of a program that was lowered, or written with its sends and receives."""
    return any(node.op in SENDS or node.op in RECEIVES for node in program.nodes)


def ends(edge: Edge, nodes: Sequence[Node]) -> tuple[Message, Message]:
    """The send and the receive of an edge between ranks."""
    source, target = nodes[edge.source], nodes[edge.target]
    names, payload = MESSAGES.get(edge.payload, OTHER), "" if edge.payload in MESSAGES else edge.payload
    return (
        Message(source.action._replace(op=names[0]), payload),
        Message(target.action._replace(op=names[1]), payload),
    )


def attach(program: Program, lanes: Mapping[Lane, Sequence[Message]]) -> Program:
    """The program in which these lanes carry its messages.

    Raises ShunterError where a send or a receive is missing, is done twice or serves nothing, and where
    the two ends of a lane name different messages.
    """
    nodes = list(program.nodes)
    order = {lane: list(ids) for lane, ids in program.order.items()}
    found: dict[tuple[Lane, Message], int] = {}
    for lane in sorted(lanes):
        for message in lanes[lane]:
            if (lane, message) in found:
                raise ShunterError(
                    f"rank {lane[0]} does {message} ({lane[1]}) twice", mend="Remove one of the two."
                )
            found[lane, message] = len(nodes)
            stage, op, microbatch, _, part = message.action
            nodes.append(Node(len(nodes), *lane, op, stage, microbatch, part, payload=message.payload))
        order[lane] = [found[lane, message] for message in lanes[lane]]
    edges: list[Edge] = []
    used = set()
    partner: dict[int, int] = {}
    crossing = set(_crossing(program))
    for edge in program.edges:
        if edge not in crossing:
            edges.append(edge)
            continue
        source, target = nodes[edge.source], nodes[edge.target]
        send, receive = ends(edge, nodes)
        here = _need(found, (source.rank, f"to {target.rank}"), send, target)
        there = _need(found, (target.rank, f"from {source.rank}"), receive, target)
        used |= {here, there}
        partner[here] = there
        edges += [Edge(edge.source, here), Edge(here, there, edge.payload), Edge(there, edge.target)]
    if surplus := set(found.values()) - used:
        node = nodes[min(surplus)]
        raise ShunterError(
            f"{node} ({node.lane}) serves nothing",
            mend="Remove it, or add the action that gives or takes its data.",
        )
    _same_order(order, nodes, partner)
    return Program(nodes, order, edges, program.rendezvous, program.pairs)


def _crossing(program: Program) -> list[Edge]:
    nodes = program.nodes
    return [
        edge for edge in program.edges if edge.payload and nodes[edge.source].rank != nodes[edge.target].rank
    ]


def _need(found: Mapping[tuple[Lane, Message], int], lane: Lane, message: Message, target: Node) -> int:
    here = found.get((lane, message))
    if here is None:
        raise ShunterError(
            f"rank {lane[0]} never does {message} ({lane[1]}), which {target} needs",
            mend="Add it to the lane, or leave all messages out and let them be added.",
        )
    return here


def _same_order(
    order: Mapping[Lane, Sequence[int]], nodes: Sequence[Node], partner: Mapping[int, int]
) -> None:
    """Messages of a lane arrive in the order in which they were sent: both ends must name the same one."""
    for (rank, lane), sends in order.items():
        if not lane.startswith("to "):
            continue
        receives = order[int(lane.removeprefix("to ")), f"from {rank}"]
        for number, (send, receive) in enumerate(zip(sends, receives, strict=True), 1):
            if partner[send] != receive:
                raise ShunterError(
                    f"message {number} from rank {rank} is {nodes[send].action}, but rank "
                    f"{nodes[receive].rank} receives {nodes[receive].action} there",
                    mend="Bring the two lanes into one order.",
                )


def _with_stage_actions(program: Program, shard: bool, reduce: bool) -> Program:
    """UNSHARD before each stage's first use; REDUCE_GRAD and RESHARD after its last.

    Between the two halves of a backward a stage stays whole: given up and gathered in between, its
    gradients would be wrong without a word (`check` refuses it).
    """
    nodes = list(program.nodes)
    order = {lane: list(ids) for lane, ids in program.order.items()}
    for (rank, lane), ids in program.order.items():
        if lane != COMPUTE_LANE:
            continue
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        trained: set[int] = set()
        for id in ids:
            node = nodes[id]
            if node.op in COMPUTE:
                first.setdefault(node.stage, id)
                last[node.stage] = id
                if node.op in (BACKWARD, INPUT, WEIGHT):
                    trained.add(node.stage)
        made: list[int] = []
        for id in ids:
            stage = nodes[id].stage
            if shard and first.get(stage) == id:
                made.append(_stage_node(nodes, rank, UNSHARD, stage))
            made.append(id)
            if last.get(stage) == id:
                if reduce and stage in trained:
                    made.append(_stage_node(nodes, rank, REDUCE, stage))
                if shard:
                    made.append(_stage_node(nodes, rank, RESHARD, stage))
        order[rank, lane] = made
    return Program(nodes, order, program.edges, program.rendezvous, program.pairs)


def _stage_node(nodes: list[Node], rank: int, op: str, stage: int) -> int:
    nodes.append(Node(len(nodes), rank, COMPUTE_LANE, op, stage, -1))
    return len(nodes) - 1
