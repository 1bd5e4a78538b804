"""Walks a lowered program on one rank: runs what the compute lane says, and moves what it makes.

Nothing here knows a schedule. What a node takes and gives follows from the program's edges; lanes other than
the compute lane go on as soon as what they wait for is done, in their own order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.parallel.clock import Clock
from shunter.parallel.lost import PeerLost
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import Stage
from shunter.parallel.transport import Kind, Mailbox
from shunter.parallel.tree import Tree
from shunter.record.points import reach
from shunter.schedule.action import BACKWARD, COMPUTE, FORWARD, INPUT, RECOMPUTE, WEIGHT, named
from shunter.schedule.check import check, least_in_flight
from shunter.schedule.lower import MESSAGES, RECEIVES, SENDS
from shunter.schedule.program import COMPUTE_LANE, Node, Program

# An operation that no stage does: what its node takes -> what it gives; on a side lane, a work to wait for,
# whose `wait` returns what it gives.
Handler = Callable[[Node, Tree], Any]


class Waitable(Protocol):
    """What a collective that was begun is: `wait` returns when it has ended, with what it made."""

    def wait(self) -> Any: ...


@dataclass
class _Plan:
    """What one node of this rank takes and gives, read off the edges once."""

    node: Node
    receives: list[int] = field(default_factory=list)  # ids of RECV nodes of this rank
    takes: list[tuple[int, str]] = field(default_factory=list)  # (source on this rank, payload)
    after: list[int] = field(default_factory=list)  # nodes of side lanes that must have ended
    readers: int = 0  # sends and local takers of what it makes


class Executor:
    """Runs a program's part of one rank, any number of times.

    program:  lowered; checked here.
    stages:   those that this rank holds, by number; a part of one by (number, name of the part).
    handlers: operations other than F, R, B, I, W by name.
    at_least: seconds that an action of each stage takes, by its letter: what it lacks is slept.
    key:      micro-batch -> anything hashable; micro-batches of one key have messages of one shape. All
              ranks must agree on it.
    """

    def __init__(
        self,
        program: Program,
        rank: int,
        stages: Mapping[int, Stage] | Mapping[int | tuple[int, str], Stage],
        groups: Groups | None,
        device: torch.device,
        *,
        handlers: Mapping[str, Handler] | None = None,
        at_least: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        check(program)
        self.program, self.rank = program, rank
        self.at_least = dict(at_least or {})
        self.stages = {key if isinstance(key, tuple) else (key, ""): stage for key, stage in stages.items()}
        self.handlers = dict(handlers or {})
        self.clock = Clock(device)
        in_flight = max(2, least_in_flight(program))
        self.mailbox = Mailbox(groups, rank, device, in_flight) if groups is not None else None
        self.train = any(node.op in (BACKWARD, INPUT) for node in program.nodes)
        again = [node for node in program.nodes if node.op == RECOMPUTE and node.rank == rank]
        self._again = {(node.stage, node.part, node.microbatch) for node in again}
        self._sender = self._senders()
        self._named = self._payload_names()
        self._plans = self._read()
        self._refuse_unknown()

    def run(self, key: Callable[[int], object] = lambda microbatch: None) -> dict[int, Tensor]:
        """Walk the program once; returns the losses of this rank's last stage by micro-batch.

        Gradients are added to `.grad`. Raises ShunterError, naming the rank and the action, when a peer
        does not answer.
        """
        walk = _Walk(self, key)
        try:
            walk.go()
        except BaseException:
            for stage in self.stages.values():
                stage.drop()
            raise
        losses: dict[int, Tensor] = {}
        for stage in self.stages.values():
            losses.update(stage.losses)
            stage.losses = {}
            if self.train:
                stage.commit()
        return losses

    def _senders(self) -> dict[int, Node]:
        """Message -> the node that sends it: what both ends know it by."""
        nodes = self.program.nodes
        found = {node.id: node for node in nodes if node.op in SENDS}
        for source, target, _ in self.program.edges:
            if nodes[target].op in RECEIVES and nodes[source].op in SENDS:
                found[target] = nodes[source]
        return found

    def _payload_names(self) -> dict[int, set[str]]:
        """Payloads with a name of their own that leave each node: they are not in what it hands on else."""
        names: dict[int, set[str]] = defaultdict(set)
        for source, target, payload in self.program.edges:
            node = self.program.nodes[source]
            if node.op in SENDS or node.op in RECEIVES:
                continue
            target_node = self.program.nodes[target]
            name = payload or (target_node.payload if target_node.op in SENDS else "")
            if name and name not in MESSAGES:
                names[source].add(name)
        return names

    def _read(self) -> dict[int, _Plan]:
        nodes = self.program.nodes
        plans = {node.id: _Plan(node) for node in nodes if node.rank == self.rank}
        for source, target, payload in self.program.edges:
            a, b = nodes[source], nodes[target]
            if b.rank != self.rank or a.rank != self.rank:
                continue
            plan = plans[target]
            if a.op in RECEIVES:
                plan.receives.append(source)
            elif b.op in SENDS:
                plans[source].readers += 1
                plan.takes.append((source, b.payload or _payload_of(b.op)))
            else:
                if a.lane != b.lane:  # a lane's own order, and the compute lane's, see to themselves
                    plan.after.append(source)
                if payload:
                    plans[source].readers += 1
                    plan.takes.append((source, payload))
        return plans

    def _refuse_unknown(self) -> None:
        known = {FORWARD, RECOMPUTE, BACKWARD, INPUT, WEIGHT, *SENDS, *RECEIVES, *self.handlers}
        for plan in self._plans.values():
            if plan.node.op not in known:
                raise ShunterError(
                    f"nothing here can do {plan.node.op!r}, as {plan.node} asks",
                    mend="Give the executor a handler for it, or leave it out of the program.",
                )
            if plan.node.op in COMPUTE and (plan.node.stage, plan.node.part) not in self.stages:
                raise ShunterError(
                    f"{plan.node}: the rank has no stage {named(plan.node.stage, plan.node.part)}",
                    mend="Give it the stage's module, or place the stage on another rank.",
                )


class _Walk:
    """One pass through the program."""

    def __init__(self, executor: Executor, key: Callable[[int], object]) -> None:
        self.executor, self.key = executor, key
        self.program, self.rank = executor.program, executor.rank
        self.values: dict[int, Tree] = {}
        self.left: dict[int, int] = {}
        self.done: set[int] = set()
        self.works: dict[int, Waitable] = {}
        self.taken: dict[tuple[int, str, int], list[Tree]] = defaultdict(list)
        self.lanes = {
            lane: list(ids)
            for (owner, lane), ids in executor.program.order.items()
            if owner == self.rank and lane != COMPUTE_LANE and not lane.startswith("from ")
        }
        self.at = dict.fromkeys(self.lanes, 0)

    def go(self) -> None:
        executor, mailbox = self.executor, self.executor.mailbox
        nodes, clock = self.program.nodes, executor.clock
        if mailbox is not None:
            mailbox.begin(
                {
                    int(lane.removeprefix("from ")): [(id, self._kind(nodes[id])) for id in ids]
                    for (owner, lane), ids in self.program.order.items()
                    if owner == self.rank and lane.startswith("from ")
                }
            )
        last = {}
        for node in self.program.lane(self.rank):
            if node.microbatch >= 0:
                last[_whose(node)] = node.id
        for node in self.program.lane(self.rank):
            plan = executor._plans[node.id]
            for id in plan.after:
                self._await(id)  # a work of a side lane
            inputs = self._gather(plan)
            reach("pipeline.action", rank=self.rank, action=node.action)
            begin = clock.mark()
            least = executor.at_least.get(node.op)
            end = time.perf_counter() + (least[node.stage] if least else 0.0)
            made = self._do(node, inputs)
            if least and (left := end - time.perf_counter()) > 0:
                time.sleep(left)
            clock.note(node, begin)
            self._keep(plan, made)
            self.done.add(node.id)
            self._move()
            if mailbox is not None and last.get(_whose(node)) == node.id:
                for tree in self.taken.pop(_whose(node), ()):
                    mailbox.give_back(tree)
        for lane in self.lanes:
            while self.at[lane] < len(self.lanes[lane]):
                self._await(self.lanes[lane][self.at[lane]])
        for work in self.works.values():
            work.wait()
        self.works.clear()
        if mailbox is not None:
            mailbox.finish()

    def _do(self, node: Node, inputs: Tree) -> Tree:
        executor = self.executor
        op, microbatch = node.op, node.microbatch
        stage = executor.stages.get((node.stage, node.part))
        if op == FORWARD:
            assert stage is not None
            light = _whose(node) in executor._again
            made = stage.forward(microbatch, inputs, train=executor.train, light=light)
        elif op == BACKWARD:
            assert stage is not None
            made = stage.backward(microbatch, inputs)
        elif op == INPUT:
            assert stage is not None
            made = stage.input_grad(microbatch, inputs)
        elif op == WEIGHT:
            assert stage is not None
            stage.weight_grad(microbatch)
            return {}
        elif op == RECOMPUTE:
            assert stage is not None
            stage.recompute(microbatch)
            return {}
        else:
            return executor.handlers[op](node, inputs) or {}
        if inputs and made and (op != FORWARD or not executor.train):
            # A buffer that came in is used again soon, maybe before what shares its memory has left.
            shared = {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
            for name, tensor in made.items():
                if tensor.untyped_storage().data_ptr() in shared:
                    made[name] = tensor.clone()
        return made

    def _gather(self, plan: _Plan) -> Tree:
        """What the node takes: from ranks that sent it, and from nodes here."""
        found: Tree = {}
        for id in plan.receives:
            tree = self._take(id)
            self.taken[_whose(plan.node)].append(tree)
            _merge(found, tree)
        for source, payload in plan.takes:
            _merge(found, self._read(source, payload))
        return found

    def _take(self, id: int) -> Tree:
        node = self.program.nodes[id]
        mailbox = self.executor.mailbox
        assert mailbox is not None
        peer = int(node.lane.removeprefix("from "))
        try:
            return mailbox.take(peer, id)
        except RuntimeError as error:
            raise _lost(self.rank, node, peer, error) from error

    def _keep(self, plan: _Plan, made: Any) -> None:
        if plan.readers:
            assert isinstance(made, dict), f"{plan.node} made nothing that could be handed on"
            self.values[plan.node.id], self.left[plan.node.id] = made, plan.readers

    def _read(self, source: int, payload: str) -> Tree:
        tree = self.values[source]
        self.left[source] -= 1
        if not self.left[source]:
            del self.values[source], self.left[source]
        if payload not in MESSAGES:
            return {payload: tree[payload]}
        named = self.executor._named.get(source)
        return {name: tensor for name, tensor in tree.items() if name not in named} if named else tree

    def _move(self) -> None:
        """Let every side lane go on as far as it can."""
        for lane, ids in self.lanes.items():
            while self.at[lane] < len(ids) and self._ready(ids[self.at[lane]]):
                self._begin(lane)

    def _ready(self, id: int) -> bool:
        plan = self.executor._plans[id]
        return all(source in self.done for source, _ in plan.takes) and all(
            source in self.done for source in plan.after
        )

    def _await(self, id: int) -> None:
        """Begin the side lane up to the node, wherever it stands, and wait for the node."""
        lane = self.program.nodes[id].lane
        while id not in self.done:
            plan = self.executor._plans[self.lanes[lane][self.at[lane]]]
            for earlier in plan.after:
                self._await(earlier)
            self._begin(lane)
        if (work := self.works.pop(id, None)) is not None:
            self._keep(self.executor._plans[id], work.wait())

    def _begin(self, lane: str) -> None:
        id = self.lanes[lane][self.at[lane]]
        node, mailbox = self.program.nodes[id], self.executor.mailbox
        self.at[lane] += 1
        plan = self.executor._plans[id]
        inputs = self._gather(plan)
        if node.op in SENDS:
            assert mailbox is not None
            peer = int(lane.removeprefix("to "))
            try:
                mailbox.send(peer, self._kind(node), inputs)
            except RuntimeError as error:
                raise _lost(self.rank, node, peer, error) from error
        else:
            work = self.executor.handlers[node.op](node, inputs)
            if work is not None:
                self.works[id] = work
        self.done.add(id)

    def _kind(self, node: Node) -> Kind:
        """Messages of one operation, sending stage, payload and key have one shape."""
        sender = self.executor._sender[node.id]
        payload = f"{sender.part}:{node.payload}" if sender.part else node.payload
        return Kind(node.op.replace("RECV", "SEND"), sender.stage, payload, self.key(node.microbatch))


def _whose(node: Node) -> tuple[int, str, int]:
    """Stage, part and micro-batch: what a stage keeps until its backward belongs to."""
    return node.stage, node.part, node.microbatch


def _payload_of(op: str) -> str:
    return next(payload for payload, (send, _) in MESSAGES.items() if send == op)


def _merge(into: Tree, tree: Tree) -> None:
    for name, tensor in tree.items():
        into[name] = into[name] + tensor if name in into else tensor


def _lost(rank: int, node: Node, peer: int, error: RuntimeError) -> PeerLost:
    reason = str(error).strip().splitlines()[0][:200]
    return PeerLost(
        f"rank {rank} cannot do {node.action}: rank {peer} does not answer ({reason})",
        mend="Look at what that rank said last; the run continues from its last checkpoint.",
        waited=f"for rank {peer}, to do {node.action}",
    )
