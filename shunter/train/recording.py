"""One step of a layout, watched: when each action ran, when ranks stood in calls to others, what was held for
backwards, what was sent. And one step's peak memory, by itself, since counting it takes time."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from shunter.parallel.blocked import blocked
from shunter.parallel.clock import Stamps, gather_timeline, offset
from shunter.parallel.live import LiveBytes
from shunter.parallel.saved import SavedBytes
from shunter.parallel.told import told_by_all
from shunter.record.events import EventLog
from shunter.record.split import Rank, split
from shunter.record.timeline import Timeline
from shunter.schedule.assemble import assemble
from shunter.schedule.costs import Costs
from shunter.schedule.order import Order
from shunter.schedule.simulate import simulate
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.traffic import StepTraffic, kept_bytes, states

MOST = 64  # ranks whose calls are told one by one, and whose clocks are compared


@dataclass(frozen=True)
class Recorded:
    """timeline: of rank 0's pipeline, on rank 0; None on the others. saved_bytes: the most that each rank of
    this pipeline held for backwards. traffic: what this rank sent (see `StepTraffic.stop`). calls: when its
    step began and ended, and when it stood in calls (see `record.split.Rank`); empty where ranks are many."""

    timeline: Timeline | None
    saved_bytes: list[int]
    traffic: dict[str, Any]
    calls: dict[str, Any]


class Recording:
    """Watches from when it is made to `end`. Every rank makes one at the same time."""

    def __init__(self, passes: LaidOutPasses) -> None:
        self.passes = passes
        peers = passes.world.mesh.peers("pp")
        self._shift = 0.0
        if peers.size > 1:
            group = passes.world.groups.up if passes.world.groups else None
            assert group is not None
            self._shift = offset(group, peers.ranks, peers.index, passes.device)
        every = passes.world.mesh.everyone
        self._among_all = self._shift
        if peers.size < every.size <= MOST:
            assert every.group is not None
            self._among_all = offset(every.group, every.ranks, every.index, passes.device)
        self._saved = SavedBytes(passes.part.weights.values())  # plain ones: a DTensor has no storage
        for stage in passes.stages.values():
            stage.saved = self._saved
        self._traffic = StepTraffic(passes.part)
        self._traffic.start()
        self._stack = ExitStack()
        self._stamps = Stamps(passes.device)
        self._blocked = self._stack.enter_context(blocked(self._stamps))
        passes.executor.clock.start()
        self._begin = self._stamps.mark()

    def end(self) -> Recorded:
        """What was seen. Every rank calls it."""
        passes, peers = self.passes, self.passes.world.mesh.peers("pp")
        end = self._stamps.mark()
        self._stack.close()
        spans = passes.executor.clock.stop()
        traffic = self._traffic.stop()
        for stage in passes.stages.values():
            stage.saved = None
        peaks = torch.zeros(peers.size, dtype=torch.float64, device=passes.device)
        peaks[peers.index] = self._saved.peak
        saved = [int(peak) for peak in passes.world.sum(peaks, peers).tolist()]
        found = gather_timeline(spans, self._shift, peers, passes.device)
        mine: dict[str, Any] = {}
        if passes.world.size <= MOST:
            shift = self._among_all
            begin, end = (self._stamps.seconds(mark) + shift for mark in (self._begin, end))
            calls = [
                [call.kind, call.group, call.number, call.begin + shift, call.end + shift]
                for call in self._blocked.calls()
            ]
            mine = {"begin": begin, "end": end, "calls": calls}
        return Recorded(found if passes.world.rank == 0 else None, saved, traffic, mine)


def keep(recording: Recording, optimizers: Optimizers, step: int, log: Path, events: EventLog) -> None:
    """End the recording and write it: the timeline as measured, and as its program would take at its median
    costs; what each rank sent, and keeps between steps. Every rank calls it."""
    found, passes = recording.end(), recording.passes
    mine = found.traffic | kept_bytes(passes.part, optimizers)
    every = told_by_all(mine, passes.world.mesh.everyone, passes.device)
    ranks = told_by_all(found.calls, passes.world.mesh.everyone, passes.device)
    if found.timeline is None:
        return
    found.timeline.save(log / "timeline-measured.json")
    simulated = expected(passes.order, found.timeline)
    simulated.save(log / "timeline-simulated.json")
    events.write(
        "timeline",
        step=step,
        measured=found.timeline.elapsed,
        simulated=simulated.elapsed,
        saved_bytes=found.saved_bytes,
    )
    events.write("traffic", step=step, ranks=every)
    if all(ranks):
        shares, whole = split([Rank.of(told) for told in ranks])
        whole.save(log / "timeline-ranks.json")
        events.write("ranks", step=step, ranks=[each.data() for each in shares])


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor this rank's part, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Peak:
    """Around one step: the bytes of all tensors that are alive at once on this rank, at most. On a CPU, where
    no allocator tells, every operation is looked at. Every rank enters one at the same time."""

    def __init__(self, passes: LaidOutPasses, optimizers: Optimizers, step: int, events: EventLog) -> None:
        self.passes, self.optimizers, self.step, self.events = passes, optimizers, step, events
        there = [*passes.part.weights.values(), *passes.decoder.parameters(), *states(optimizers)]
        self._live = LiveBytes(map(local, there)) if passes.device.type == "cpu" else None

    def __enter__(self) -> Peak:
        if self._live is not None:
            self._before = sum(kept_bytes(self.passes.part, self.optimizers).values())
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
        if kind is not None:
            return
        device, everyone = self.passes.device, self.passes.world.mesh.everyone
        most = (
            torch.cuda.max_memory_allocated(device) if self._live is None else self._before + self._live.peak
        )
        every = told_by_all(most, everyone, device)
        if self.passes.world.rank == 0:
            self.events.write("memory", step=self.step, peak_bytes=every)


def expected(order: Order, measured: Timeline) -> Timeline:
    """The order's simulated timeline at the median costs of a measured one, without messages' time."""
    samples: dict[tuple[str, int], list[float]] = {}
    for span in measured:
        samples.setdefault((span.args["op"], span.args["stage"]), []).append(span.seconds)
    costs = Costs({key: statistics.median(seconds) for key, seconds in samples.items()})
    return simulate(assemble(order), costs).timeline()
