"""Pipelines with data-parallel rings on real processes whose work and links are slept: a cluster that is
not here.

Messages pass between the processes; each bears the time at which its link would have delivered it, and
whoever receives it waits until then. A link takes one message after the other, each for its bytes over its
bandwidth, and hands it on after its latency. All processes are on one machine: they share its clock."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shunter.schedule.action import BACKWARD, FORWARD
from shunter.schedule.catalogue import schedule

ACTIVATION, GRADIENT, RING = 1, 2, 3  # tags
LEAD = 0.02  # seconds between the agreement on a start and the start
MOST = 4  # times as many steps as asked for, where a busy machine makes them differ


@dataclass(frozen=True)
class Case:
    """A layout on nodes, each of which is one process.

    grid: node of each place, row after row; a row is a pipeline of `pp` stages, a column a ring. forward,
    backward: seconds of a micro-batch, by stage, at speed 1. message: bytes of an activation, and of a
    gradient. gradients: bytes that each stage's ring reduces, in `buckets` parts; with `overlap` each part
    begins as soon as its share of the last backward is done. link: seconds and bytes a second of every link,
    whatever joins two nodes. speeds: of all nodes; 1 by default."""

    grid: tuple[int, ...]
    pp: int
    microbatches: int
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    message: float
    gradients: tuple[float, ...]
    buckets: int = 1
    overlap: bool = False
    link: tuple[float, float] | None = None
    speeds: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """From what JSON makes of it."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**given)


class Wires:
    """Links of this node to the others. between: (from, to) -> (seconds, bytes a second)."""

    def __init__(self, between: Mapping[tuple[int, int], tuple[float, float]], me: int) -> None:
        self.between, self.me = between, me
        self._free: dict[int, float] = {}
        self._sent: list[tuple[Any, torch.Tensor]] = []
        self._lock = threading.Lock()

    def send(self, target: int, size: float, tag: int) -> None:
        """Hand a message of so many bytes to the link, and go on."""
        latency, rate = self.between[self.me, target]
        with self._lock:
            leaves = max(time.perf_counter(), self._free.get(target, 0.0)) + size / rate
            self._free[target] = leaves
            note = torch.tensor([leaves + latency], dtype=torch.float64)
            self._sent.append((dist.isend(note, target, tag=tag), note))

    @staticmethod
    def receive(source: int, tag: int) -> None:
        """Wait for a message until its link would have delivered it."""
        note = torch.zeros(1, dtype=torch.float64)
        dist.recv(note, source, tag=tag)
        wait_until(float(note))

    def drain(self) -> None:
        """Let go of what was sent."""
        for handle, _ in self._sent:
            handle.wait()
        self._sent.clear()


def wait_until(moment: float) -> None:
    """Sleep until then."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(left)


def step(case: Case, wires: Wires) -> float:
    """One step, from a start that all agree on; seconds until this node was done. Every process calls it."""
    begin = torch.tensor([time.perf_counter() + LEAD], dtype=torch.float64)
    dist.barrier()
    dist.all_reduce(begin, dist.ReduceOp.MAX)
    start = float(begin)
    wait_until(start)
    if wires.me in case.grid:
        _work(case, wires)
    took = time.perf_counter() - start
    wires.drain()
    return took


def _work(case: Case, wires: Wires) -> None:
    row, stage = divmod(case.grid.index(wires.me), case.pp)
    before = case.grid[row * case.pp + stage - 1] if stage else None
    after = case.grid[row * case.pp + stage + 1] if stage + 1 < case.pp else None
    ring = Ring([case.grid[at] for at in range(stage, len(case.grid), case.pp)], row, wires)
    part = case.gradients[stage] / case.buckets
    speed = case.speeds[wires.me] if case.speeds else 1.0
    done = 0
    for action in schedule("1f1b").build(case.pp, case.microbatches).actions[stage]:
        if action.op == FORWARD:
            if before is not None:
                wires.receive(before, ACTIVATION)
            wait_until(time.perf_counter() + case.forward[stage] / speed)
            if after is not None:
                wires.send(after, case.message, ACTIVATION)
        elif action.op == BACKWARD:
            if after is not None:
                wires.receive(after, GRADIENT)
            done += 1
            buckets = case.buckets if case.overlap and done == case.microbatches else 0
            _backward(case.backward[stage] / speed, buckets, ring, part)
            if before is not None:
                wires.send(before, case.message, GRADIENT)
    if not case.overlap:
        for _ in range(case.buckets):
            ring.begin(part)
    ring.join()


def _backward(seconds: float, buckets: int, ring: Ring, part: float) -> None:
    """buckets: parts whose gradients are ready, one after the other, while it goes on."""
    end = time.perf_counter() + seconds
    for bucket in range(buckets):
        wait_until(end - (buckets - 1 - bucket) / buckets * seconds)
        ring.begin(part)
    wait_until(end)


class Ring:
    """All-reduces of parts, one after the other, beside what else this process does."""

    def __init__(self, nodes: Sequence[int], place: int, wires: Wires) -> None:
        self.size, self.wires = len(nodes), wires
        self.next, self.last = nodes[(place + 1) % self.size], nodes[place - 1]
        self._parts: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, size: float) -> None:
        self._parts.put(size)

    def join(self) -> None:
        self._parts.put(None)
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            while (size := self._parts.get()) is not None:
                for _ in range(2 * (self.size - 1)):  # half of them reduce, half of them gather
                    self.wires.send(self.next, size / self.size, RING)
                    self.wires.receive(self.last, RING)
        except BaseException as error:  # told by `join`
            self._failed.append(error)


def measure(
    cases: Mapping[str, Case],
    between: Mapping[tuple[int, int], tuple[float, float]],
    rank: int,
    repeats: int,
    within: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each case's steps, after one to get warm: of the node that was done last. Cases take
    turns, so that what else the machine does falls on all of them.

    within: share within which the two least steps of a case must agree, or it takes further turns, until it
    has had MOST times `repeats`; 0: none does."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(MOST * repeats + 1):
        # All ranks have the same seconds, and agree on who is open.
        open_ = [name for name in cases if turn <= repeats or not _settled(found[name], within)]
        for name in open_:
            case = cases[name]
            links = dict.fromkeys(between, case.link) if case.link else between
            took = torch.tensor([step(case, Wires(links, rank))], dtype=torch.float64)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            if turn:
                found[name].append(float(took))
    return found


def _settled(seconds: Sequence[float], within: float) -> bool:
    if not within:
        return True
    least = sorted(seconds)[:2]
    return len(least) == 2 and least[1] <= (1 + within) * least[0]
