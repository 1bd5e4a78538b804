"""When each node of a program begins and ends, given its cost and the links between ranks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from shunter.record.timeline import Timeline
from shunter.schedule.costs import Costs, Links
from shunter.schedule.deadlock import Blocked, raise_deadlock
from shunter.schedule.program import COMPUTE_LANE, Edge, Node, Program

Out = tuple[int, float, int, float]  # target, latency, number of the link or -1, for how long it is kept


@dataclass(frozen=True)
class Simulation:
    """begin and end of each node by id, in the unit of the costs.

    queued: (source, target) -> when what took a link of its own arrived; all else arrives `links`' latency
    after its source has ended.
    """

    program: Program
    begin: list[float]
    end: list[float]
    elapsed: float
    links: Links
    queued: dict[tuple[int, int], float]

    def _compute(self) -> Iterator[tuple[int, list[int]]]:
        for (rank, lane), ids in self.program.order.items():
            if lane == COMPUTE_LANE and ids:
                yield rank, ids

    @property
    def ideal(self) -> float:
        """Time that the busiest rank computes: the elapsed time without any idling of it."""
        begin, end = self.begin, self.end
        return max((sum(end[id] - begin[id] for id in ids) for _, ids in self._compute()), default=0.0)

    @property
    def idle_over_ideal(self) -> float:
        return self.elapsed / self.ideal - 1 if self.ideal else 0.0

    def _arrival(self, edge: Edge) -> float:
        """When the edge's target has what it hands over."""
        found = self.queued.get((edge.source, edge.target))
        if found is not None:
            return found
        a, b = self.program.nodes[edge.source].rank, self.program.nodes[edge.target].rank
        return self.end[edge.source] + (self.links.of(a, b)[0] if edge.payload and a != b else 0.0)

    @property
    def longest_span(self) -> float:
        """Longest time from a rank's first begin to its last end: what counts where steps may slide."""
        return max((self.end[ids[-1]] - self.begin[ids[0]] for _, ids in self._compute()), default=0.0)

    @property
    def peak_activations(self) -> list[float]:
        """Most activations that each rank holds at once, in micro-batches."""
        found = [0.0] * self.program.ranks
        nodes = self.program.nodes
        lanes: list[list[list[int]]] = [[] for _ in found]
        for (owner, _), ids in self.program.order.items():
            if owner < len(lanes):  # else a rank without any node
                lanes[owner].append(ids)
        for rank, mine in enumerate(lanes):
            holding = [ids for ids in mine if any(nodes[id].memory for id in ids)]
            if len(holding) == 1:
                changes = [nodes[id].memory for id in holding[0]]
            else:
                # What ends makes room for what begins at the same time.
                events = [
                    (self.begin[id], 1, nodes[id].memory)
                    if nodes[id].memory > 0
                    else (self.end[id], 0, nodes[id].memory)
                    for ids in holding
                    for id in ids
                    if nodes[id].memory
                ]
                changes = [change for _, _, change in sorted(events)]
            held = most = 0.0
            for change in changes:
                held += change
                most = max(most, held)
            found[rank] = round(most, 9)
        return found

    def held(self) -> dict[int, list[tuple[float, float]]]:
        """For each rank, (time, activations held from then on) of its compute lane, in order of time."""
        found: dict[int, list[tuple[float, float]]] = {}
        for rank, ids in self._compute():
            events = [
                (self.begin[id] if node.memory > 0 else self.end[id], node.memory)
                for id in ids
                if (node := self.program.nodes[id]).memory
            ]
            amount, curve = 0.0, []
            for time, change in events:
                amount += change
                curve.append((time, round(amount, 9)))
            found[rank] = curve
        return found

    def critical_path(self) -> list[Node]:
        """The chain of nodes, first to last, that determines the elapsed time."""
        program, begin, end = self.program, self.begin, self.end
        before = {b: a for ids in program.order.values() for a, b in pairwise(ids)}
        into: dict[int, list[Edge]] = {}
        for edge in program.edges:
            into.setdefault(edge.target, []).append(edge)
        together = {id: group for group in program.rendezvous for id in group}
        here = max(range(len(end)), key=end.__getitem__, default=-1)
        path: list[Node] = []
        while here >= 0:
            path.append(program.nodes[here])
            moment, here_next = begin[here], -1
            for member in together.get(here, (here,)):
                for edge in into.get(member, ()):
                    if self._arrival(edge) == moment:
                        here_next = edge.source
                if here_next < 0 and member in before and end[before[member]] == moment:
                    here_next = before[member]
            if here_next < 0 and here in before:
                here_next = before[here]  # a blocking message kept the lane
            here = here_next
        return path[::-1]

    def timeline(self, name: str = "simulated") -> Timeline:
        """Spans of all nodes that take time."""
        timeline = Timeline(name=name)
        for node in self.program.nodes:
            if self.end[node.id] > self.begin[node.id]:
                timeline.add(
                    node.rank, node.lane, str(node.action), self.begin[node.id], self.end[node.id],
                    op=node.op, stage=node.stage, microbatch=node.microbatch,
                )  # fmt: skip
        return timeline


def simulate(program: Program, costs: Costs, links: Links | None = None) -> Simulation:
    """Run the program on paper: each lane does its nodes in order, each as soon as its data is there.

    A message leaves when its source ends, and messages of one link keep their order. Raises ShunterError
    with the cycle where the program cannot come to its end.
    """
    links = links or Links()
    nodes, total = program.nodes, len(program.nodes)
    kinds = [(node[3], node[4], node[6]) for node in nodes]
    price = {kind: costs.of(*kind) for kind in set(kinds)}
    cost = [price[kind] for kind in kinds]
    orders = list(program.order.values())
    lane_of, place = [0] * total, [0] * total
    for number, ids in enumerate(orders):
        for at, id in enumerate(ids):
            lane_of[id], place[id] = number, at
    outs: list[list[Out] | None] = [None] * total
    missing = [0] * total
    wires = _Wires(links, [rank for rank, _ in program.order])
    # The pairs of lanes are few and the edges many: a number is found faster than a pair.
    known, lanes, sized = wires.known, len(orders), bool(links.sizes)
    for source, target, payload in program.edges:
        lane, other = lane_of[source], lane_of[target]
        if lane == other and place[source] < place[target]:
            continue  # the lane's order sees to it
        delay, link, occupied = 0.0, -1, 0.0
        if payload:
            key = (lane, other, payload) if sized else lane * lanes + other
            delay, link, occupied = known.get(key) or wires.find(key, lane, other, payload)
        missing[target] += 1
        out = outs[source]
        if out is None:
            outs[source] = [(target, delay, link, occupied)]
        else:
            out.append((target, delay, link, occupied))
    run = _Run(program, cost, orders, lane_of, outs, missing)
    run.go(wires.count, links.blocking)
    return Simulation(program, run.begin, run.end, max(run.end, default=0.0), links, run.queued)


class _Wires:
    """What a message from one lane to another passes. Links that are never busy need no number."""

    def __init__(self, links: Links, rank_of: list[int]) -> None:
        self.links, self.rank_of = links, rank_of
        self.known: dict[
            Hashable, tuple[float, int, float]
        ] = {}  # by both lanes, and the payload if it counts
        self._numbers: dict[tuple[int, int], int] = {}

    @property
    def count(self) -> int:
        """Links with a number."""
        return len(self._numbers)

    def find(self, key: Hashable, source: int, target: int, payload: str) -> tuple[float, int, float]:
        """Latency between two lanes, the number of the link that their ranks share or -1, and for how long
        a message keeps it."""
        a, b = self.rank_of[source], self.rank_of[target]
        latency, occupied = self.links.of(a, b, payload) if a != b else (0.0, 0.0)
        number = -1
        if a != b and (occupied > 0 or self.links.blocking):
            number = self._numbers.setdefault((a, b), len(self._numbers))
        found = self.known[key] = latency, number, occupied
        return found


class _Run:
    """Lanes run ahead in turn, each until it needs what another one has not done yet."""

    def __init__(
        self,
        program: Program,
        cost: list[float],
        orders: list[list[int]],
        lane_of: list[int],
        outs: list[list[Out] | None],
        missing: list[int],
    ) -> None:
        self.program, self.cost, self.orders = program, cost, orders
        self.lane_of, self.outs, self.missing = lane_of, outs, missing
        self.begin, self.end = [0.0] * len(cost), [0.0] * len(cost)
        self.queued: dict[tuple[int, int], float] = {}

    def go(self, links: int, blocking: bool) -> None:
        """Fill `begin` and `end`. One flat loop: it runs once for each node of programs with 10^5 of them."""
        cost, outs, missing, lane_of = self.cost, self.outs, self.missing, self.lane_of
        orders, begin, end = self.orders, self.begin, self.end
        ready = [0.0] * len(cost)
        at, clock = [0] * len(orders), [0.0] * len(orders)
        free = [0.0] * links  # when each link has sent what it was given
        queued = self.queued
        meetings = _Meetings(self.program, lane_of)
        turns = list(range(len(orders) - 1, -1, -1))
        while turns:
            lane = turns.pop()
            ids, k, now = orders[lane], at[lane], clock[lane]
            length = len(ids)
            while k < length:
                id = ids[k]
                if missing[id]:
                    break
                moment = ready[id]
                if moment > now:
                    now = moment
                if meetings.of and id in meetings.of:
                    met = meetings.arrive(id, now, turns)
                    if met is None:
                        break
                    now = met
                begin[id] = now
                now += cost[id]
                end[id] = now
                k += 1
                out = outs[id]
                if out is None:
                    continue
                leaving = now
                for target, delay, link, occupied in out:
                    if link < 0:
                        arrival = leaving + delay
                    else:
                        sent = free[link]
                        if leaving > sent:
                            sent = leaving
                        free[link] = sent = sent + occupied
                        arrival = queued[id, target] = sent + delay
                        if blocking and arrival > now:
                            now = arrival
                    if arrival > ready[target]:
                        ready[target] = arrival
                    left = missing[target] = missing[target] - 1
                    if not left:
                        other = lane_of[target]
                        if other != lane and orders[other][at[other]] == target:
                            turns.append(other)
            at[lane], clock[lane] = k, now
        if any(k < len(ids) for k, ids in zip(at, orders, strict=True)):
            raise_deadlock(Blocked(self.program, [ids[k:] for k, ids in zip(at, orders, strict=True)]))


class _Meetings:
    """Rendezvous: whoever comes first waits for the others."""

    def __init__(self, program: Program, lane_of: list[int]) -> None:
        self.of = {id: group for group in program.rendezvous for id in group}
        self.absent = {group: set(group) for group in program.rendezvous}
        self.latest = dict.fromkeys(program.rendezvous, 0.0)
        self.lane_of = lane_of

    def arrive(self, id: int, now: float, turns: list[int]) -> float | None:
        """When the node begins, or None while others are missing; the last to come wakes their lanes."""
        group = self.of[id]
        absent = self.absent[group]
        if id in absent:
            absent.remove(id)
            self.latest[group] = max(self.latest[group], now)
            if not absent:
                turns.extend(self.lane_of[member] for member in group if member != id)
        return None if absent else self.latest[group]
