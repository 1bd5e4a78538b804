"""When each action of a rank began and ended, on a clock that all ranks share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from shunter.parallel.mesh import Peers
from shunter.parallel.told import told_by_all
from shunter.record.timeline import Timeline
from shunter.schedule.program import Node

Mark = Any  # seconds, or a CUDA event


class Stamps:
    """Moments: on CUDA events, so that nothing waits; on the CPU the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.synchronize()
        self._zero = time.perf_counter(), self.mark()

    def mark(self) -> Mark:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Mark) -> float:
        """Of the host's monotonic clock; on CUDA only after the device has been waited for."""
        if not self.cuda:
            return float(mark)
        host, zero = self._zero
        return float(host + zero.elapsed_time(mark) / 1e3)


class Clock:
    """Notes spans while `on`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on = False
        self._spans: list[tuple[Node, Mark, Mark]] = []
        self._stamps: Stamps | None = None

    def start(self) -> None:
        """Forget what was noted, and note from now on."""
        self.on, self._spans, self._stamps = True, [], Stamps(self.device)

    def mark(self) -> Mark:
        return self._stamps.mark() if self.on and self._stamps is not None else None

    def note(self, node: Node, begin: Mark) -> None:
        if self.on and self._stamps is not None:
            self._spans.append((node, begin, self._stamps.mark()))

    def stop(self) -> list[tuple[Node, float, float]]:
        """What was noted, in seconds of the host's monotonic clock."""
        self.on = False
        stamps = self._stamps
        if stamps is None:
            return []
        if stamps.cuda:
            torch.cuda.synchronize()
        return [(node, stamps.seconds(begin), stamps.seconds(end)) for node, begin, end in self._spans]


ROUNDS = 16


def offset(group: dist.ProcessGroup, ranks: Sequence[int], rank: int, device: torch.device) -> float:
    """Seconds to add to this rank's clock to get pipeline rank 0's. Call it on all ranks together.

    As NTP does it: the exchange with the shortest way there and back tells best, to within half of it.
    """
    found = [0.0] * len(ranks)
    for peer in range(1, len(ranks)):
        best = float("inf")
        for _ in range(ROUNDS if rank in (0, peer) else 0):
            stamp = torch.zeros(1, dtype=torch.float64, device=device)
            if rank == 0:
                sent = time.perf_counter()
                dist.send(stamp, ranks[peer], group=group)
                dist.recv(stamp, ranks[peer], group=group)
                way = time.perf_counter() - sent
                if way < best:
                    best, found[peer] = way, sent + way / 2 - float(stamp)
            else:
                dist.recv(stamp, ranks[0], group=group)
                stamp.fill_(time.perf_counter())
                dist.send(stamp, ranks[0], group=group)
    table = torch.tensor(found, dtype=torch.float64, device=device)
    dist.broadcast(table, ranks[0], group=group)
    return float(table[rank])


def gather_timeline(
    spans: Sequence[tuple[Node, float, float]],
    shift: float,
    peers: Peers,
    device: torch.device,
    name: str = "measured",
) -> Timeline | None:
    """All ranks' spans on the first one's clock, from its first begin; None on other ranks."""
    rows = [
        [str(node.action), node.op, node.stage, node.microbatch, begin + shift, end + shift]
        for node, begin, end in spans
    ]
    told = told_by_all(rows, peers, device)
    if peers.index != 0:
        return None
    timeline = Timeline(name=name)
    everything = list(enumerate(told))
    zero = min((row[4] for _, rows in everything for row in rows), default=0.0)
    for owner, rows in everything:
        for text, op, stage, microbatch, begin, end in rows:
            timeline.add(
                owner, "compute", text, begin - zero, end - zero, op=op, stage=stage, microbatch=microbatch
            )
    return timeline
