"""Is a program sound? The first thing that is not is named, with its rank."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from shunter.config.errors import ShunterError
from shunter.schedule.action import (
    BACKWARD,
    COMPUTE,
    FORWARD,
    HEAD,
    INPUT,
    RECOMPUTE,
    RESHARD,
    SOFTMAX,
    UNSHARD,
    WEIGHT,
)
from shunter.schedule.costs import Costs
from shunter.schedule.lower import RECEIVES
from shunter.schedule.program import Edge, Lane, Node, Program
from shunter.schedule.simulate import simulate

_SLACK = 1e-9  # activations are sums of shares: what should be equal may differ by rounding


def check(
    program: Program, *, cap: float | Sequence[float] | None = None, in_flight: int | None = None
) -> None:
    """Raise ShunterError unless the program can be run.

    cap:       the most activations that a rank may hold, in micro-batches; one number or one a rank.
    in_flight: how many messages of one lane may have arrived and not been used yet; None: any number.

    Checked: every node is on one lane of its rank; each forward has its backward, whole or in two halves,
    on the same rank and in this order; weights are there when they are used; a rank keeps one softmax of
    its vocabulary part at a time; the cap; collectives come in one order on all ranks; nothing waits for
    itself, with no more than `in_flight` messages kept.
    """
    _lanes(program)
    for rank in range(program.ranks):
        _complete(program.lane(rank))
        _sharding(program.lane(rank))
        _softmaxes(program.lane(rank))
    if cap is not None:
        caps = [cap] * program.ranks if isinstance(cap, int | float) else list(cap)
        for rank, most in enumerate(caps):
            _cap(program.lane(rank), rank, most)
    _collectives(program)
    simulate(program if in_flight is None else bounded(program, in_flight), Costs({}))


def bounded(program: Program, in_flight: int) -> Program:
    """The program in which a receive waits until the message `in_flight` before it has been used."""
    users: dict[int, list[int]] = defaultdict(list)
    for source, target, _ in program.edges:
        if program.nodes[source].op in RECEIVES:
            users[source].append(target)
    waits = [
        Edge(user, later)
        for ids in program.order.values()
        for earlier, later in zip(ids, ids[in_flight:], strict=False)
        if program.nodes[earlier].op in RECEIVES
        for user in users[earlier]
    ]
    return program.with_edges(waits)


def least_in_flight(program: Program) -> int:
    """The least number of messages kept on each lane with which the program comes to its end."""
    most = max((len(ids) for (_, lane), ids in program.order.items() if lane.startswith("from ")), default=1)
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high) // 2
        try:
            simulate(bounded(program, middle), Costs({}))
        except ShunterError:
            low = middle + 1
        else:
            high = middle
    return low


def _lanes(program: Program) -> None:
    seen: Counter[int] = Counter(id for ids in program.order.values() for id in ids)
    for node in program.nodes:
        if seen[node.id] != 1:
            raise ShunterError(
                f"{node} is on {seen[node.id]} lanes", mend="Give each node one place on one lane."
            )
    for (rank, lane), ids in program.order.items():
        for id in ids:
            node = program.nodes[id]
            if (node.rank, node.lane) != (rank, lane):
                raise ShunterError(
                    f"{node} ({node.lane}) stands on rank {rank} ({lane})", mend="Move it to its own lane."
                )


def _complete(nodes: Sequence[Node]) -> None:
    """Forward, maybe once more, then backward: whole, or the input's half and then the weights'."""
    state: dict[tuple[int, int, str], str] = {}
    ready = (FORWARD, RECOMPUTE)
    after = {FORWARD: ("",), RECOMPUTE: (FORWARD,), BACKWARD: ready, INPUT: ready, WEIGHT: (INPUT,)}
    trains = any(node.op in (BACKWARD, INPUT, WEIGHT) for node in nodes)
    for node in nodes:
        if node.op not in COMPUTE:
            continue
        key = node.stage, node.microbatch, node.part
        before = state.get(key, "")
        if before not in after[node.op]:
            raise ShunterError(
                f"{node} comes {'after ' + before if before else 'without its forward before it'}",
                mend="Each micro-batch goes forward and then backward: F then B, or F then I then W.",
            )
        state[key] = node.op
    for (stage, microbatch, _), last in state.items():
        if trains and last in (*ready, INPUT):
            rank = nodes[0].rank
            wanted = "a backward" if last in ready else "the gradient of its weights"
            raise ShunterError(
                f"rank {rank} never does {wanted} of micro-batch {microbatch} on stage {stage}",
                mend="Add the action to the rank's order.",
            )


def _sharding(nodes: Sequence[Node]) -> None:
    """Whole weights from the first use to the last half of a backward.

    Gathered again between a forward and its deferred weight gradient, weights have other storage than the
    one that the gradient goes to, and it is lost without a word (torch 2.13, FSDP2).
    """
    if not any(node.op in (UNSHARD, RESHARD) for node in nodes):
        return
    whole: set[int] = set()
    owed: dict[int, int] = defaultdict(int)
    halves = {node.stage for node in nodes if node.op == WEIGHT}
    for node in nodes:
        if node.op == UNSHARD:
            whole.add(node.stage)
        elif node.op == RESHARD:
            if owed[node.stage]:
                raise ShunterError(
                    f"{node} comes before {owed[node.stage]} gradients of the stage's weights",
                    mend="Move it behind the stage's last W.",
                )
            whole.discard(node.stage)
        elif node.op in COMPUTE:
            if node.stage not in whole:
                raise ShunterError(
                    f"{node} comes while the weights of stage {node.stage} are sharded",
                    mend=f"Add {node.stage}{UNSHARD} before it.",
                )
            if node.stage in halves:
                owed[node.stage] += {FORWARD: 1, WEIGHT: -1, BACKWARD: -1}.get(node.op, 0)


def _softmaxes(nodes: Sequence[Node]) -> None:
    """S and T by turns, where there is any T.

    A softmax is the largest thing that a rank keeps beside its stages, and no cap counts it: so there is
    room for one. A second S would overwrite it, and the T that comes after would be wrong without a word.
    """
    if not any(node.op == HEAD for node in nodes):
        return
    kept: Node | None = None
    for node in nodes:
        if node.op == SOFTMAX:
            if kept is not None:
                wanted = kept.action._replace(op=HEAD)
                raise ShunterError(
                    f"{node} overwrites the softmax of micro-batch {kept.microbatch} before {wanted} uses it",
                    mend=f"Move {wanted} in front of it: a rank keeps one softmax at a time.",
                )
            kept = node
        elif node.op == HEAD:
            if kept is None or kept.microbatch != node.microbatch:
                wanted = node.action._replace(op=SOFTMAX)
                raise ShunterError(
                    f"{node} comes without the softmax that it needs", mend=f"Put {wanted} in front of it."
                )
            kept = None


def _cap(nodes: Sequence[Node], rank: int, cap: float) -> None:
    held = 0.0
    for node in nodes:
        held += node.memory
        if held > cap + _SLACK:
            raise ShunterError(
                f"{node} makes rank {rank} hold {held:g} micro-batches of activations, more than {cap:g}",
                mend="Raise the cap, or choose a schedule that holds less, such as v-half or v-min.",
            )


def _collectives(program: Program) -> None:
    """Ranks that share several collectives on one lane reach them in one order."""
    group_of = {id: number for number, group in enumerate(program.rendezvous) for id in group}
    for group in program.rendezvous:
        ranks = [program.nodes[id].rank for id in group]
        if len(set(ranks)) < len(ranks):
            raise ShunterError(
                f"{program.nodes[group[0]]} meets itself: a rank is twice in one collective",
                mend="Give each rank one node in it.",
            )
    every = {lane: [group_of[id] for id in ids if id in group_of] for lane, ids in program.order.items()}
    sequences: dict[Lane, list[int]] = {lane: groups for lane, groups in every.items() if groups}
    members = [frozenset(program.nodes[id].rank for id in group) for group in program.rendezvous]
    for (rank, lane), mine in sequences.items():
        for (other, name), theirs in sequences.items():
            if name != lane or other <= rank:
                continue
            here = [number for number in mine if other in members[number]]
            there = [number for number in theirs if rank in members[number]]
            for a, b in zip(here, there, strict=False):
                if a != b:
                    first = next(
                        program.nodes[id] for id in program.rendezvous[a] if program.nodes[id].rank == rank
                    )
                    second = next(
                        program.nodes[id] for id in program.rendezvous[b] if program.nodes[id].rank == other
                    )
                    raise ShunterError(
                        f"{first} and {second} are next on lane {lane!r}, but are parts of two collectives",
                        mend="Bring the collectives into one order on all ranks.",
                    )
