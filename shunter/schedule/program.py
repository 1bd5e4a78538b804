"""A program: nodes in order on lanes, edges that carry data, and rendezvous.

Checked, simulated, drawn and executed by the same code, whatever built it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shunter.schedule.action import Action

COMPUTE_LANE = "compute"

Lane = tuple[int, str]


class Node(NamedTuple):
    """A piece of work on one lane of one rank.

    id:         its place in `Program.nodes`.
    lane:       the stream it occupies; a lane does one thing at a time.
    part:       of the stage, such as `head`; empty for the stage itself.
    memory:     activations in micro-batches of a whole rank: taken when the node begins if positive,
                released when it ends if negative.
    payload:    of a message, where its operation does not tell what it carries.
    """

    id: int
    rank: int
    lane: str
    op: str
    stage: int
    microbatch: int
    part: str = ""
    memory: float = 0.0
    payload: str = ""

    @property
    def action(self) -> Action:
        return Action(self.stage, self.op, self.microbatch, False, self.part)

    def __str__(self) -> str:
        return f"rank {self.rank} {self.action}"


class Edge(NamedTuple):
    """`target` begins after `source` has ended, and after what it hands over has arrived.

    payload: what is handed over, such as `activation` or `gradient`; empty where only the order matters.
    """

    source: int
    target: int
    payload: str = ""


@dataclass(frozen=True)
class Program:
    """nodes by id; `order` has the nodes of each lane in order; the nodes of a rendezvous begin together."""

    nodes: Sequence[Node]
    order: dict[Lane, list[int]]
    edges: Sequence[Edge] = ()
    rendezvous: Sequence[tuple[int, ...]] = ()
    pairs: frozenset[int] = field(
        default_factory=frozenset
    )  # nodes that run as one with the next on their lane

    @property
    def ranks(self) -> int:
        return 1 + max((node.rank for node in self.nodes), default=-1)

    def lane(self, rank: int, lane: str = COMPUTE_LANE) -> list[Node]:
        """The nodes of one lane, in order; none where the rank has no such lane."""
        return [self.nodes[id] for id in self.order.get((rank, lane), ())]

    def actions(self, rank: int) -> list[Action]:
        """What the rank computes, in order."""
        return [node.action._replace(paired=node.id in self.pairs) for node in self.lane(rank)]

    def with_edges(self, edges: Iterable[Edge]) -> Program:
        """The program with more edges, such as states that chunks of one graph hand on."""
        return Program(self.nodes, self.order, [*self.edges, *edges], self.rendezvous, self.pairs)
