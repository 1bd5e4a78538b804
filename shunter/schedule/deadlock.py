"""Why a program cannot come to its end: a deadlock is shown as its cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from shunter.config.errors import ShunterError
from shunter.schedule.program import Node, Program


@dataclass(frozen=True)
class Blocked:
    """What is left of each lane when no lane can go on."""

    program: Program
    left: list[list[int]]


def raise_deadlock(blocked: Blocked) -> NoReturn:
    """Raise ShunterError with a cycle of nodes, each waiting for the next."""
    cycle = find_cycle(blocked)
    nodes = blocked.program.nodes
    chain = " -> ".join(_told(nodes[id]) for id in [*cycle, cycle[0]])
    raise ShunterError(
        f"deadlock: {chain}",
        mend="Each waits for the next. Move one of them behind what it waits for in its lane's order.",
    )


def find_cycle(blocked: Blocked) -> list[int]:
    """Ids of nodes that wait for each other in a circle: [a, b, c] if a waits for b, b for c, c for a."""
    program = blocked.program
    undone = {id for ids in blocked.left for id in ids}
    head_of = {id: ids[0] for ids in blocked.left for id in ids}
    waits: dict[int, list[int]] = {}
    for source, target, _ in program.edges:
        if source in undone:
            waits.setdefault(target, []).append(source)
    for group in program.rendezvous:
        for id in group:
            waits.setdefault(id, []).extend(other for other in group if other != id and other in undone)
    heads = {ids[0] for ids in blocked.left if ids}
    seen: dict[int, int] = {}
    path: list[int] = []
    here = min(heads)
    while here not in seen:
        seen[here] = len(path)
        path.append(here)
        if here in waits:
            # A head waits for data; of several, one whose own lane stands somewhere else.
            wanted = waits[here]
            here = next((id for id in wanted if head_of[id] != here), wanted[0])
        else:
            here = head_of[here]  # behind its lane's head
    return path[seen[here] :]


def _told(node: Node) -> str:
    return f"{node} ({node.lane})" if node.lane != "compute" else str(node)
