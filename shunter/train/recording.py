"""One step of a layout, watched: when each action ran, what was held for backwards, what was sent."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shunter.parallel.clock import gather_timeline, offset
from shunter.parallel.saved import SavedBytes
from shunter.parallel.told import told_by_all
from shunter.record.events import EventLog
from shunter.record.timeline import Timeline
from shunter.schedule.assemble import assemble
from shunter.schedule.costs import Costs
from shunter.schedule.order import Order
from shunter.schedule.simulate import simulate
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.traffic import StepTraffic, kept_bytes


@dataclass(frozen=True)
class Recorded:
    """timeline: of rank 0's pipeline, on rank 0; None on the others. saved_bytes: the most that each rank of
    this pipeline held for backwards. traffic: what this rank sent (see `StepTraffic.stop`)."""

    timeline: Timeline | None
    saved_bytes: list[int]
    traffic: dict[str, Any]


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
        self._saved = SavedBytes(passes.part.weights.values())  # plain ones: a DTensor has no storage
        for stage in passes.stages.values():
            stage.saved = self._saved
        self._traffic = StepTraffic(passes.part)
        self._traffic.start()
        passes.executor.clock.start()

    def end(self) -> Recorded:
        """What was seen. Every rank calls it."""
        passes, peers = self.passes, self.passes.world.mesh.peers("pp")
        spans = passes.executor.clock.stop()
        traffic = self._traffic.stop()
        for stage in passes.stages.values():
            stage.saved = None
        peaks = torch.zeros(peers.size, dtype=torch.float64, device=passes.device)
        peaks[peers.index] = self._saved.peak
        saved = [int(peak) for peak in passes.world.sum(peaks, peers).tolist()]
        found = gather_timeline(spans, self._shift, peers, passes.device)
        return Recorded(found if passes.world.rank == 0 else None, saved, traffic)


def keep(recording: Recording, optimizers: Optimizers, step: int, log: Path, events: EventLog) -> None:
    """End the recording and write it: the timeline as measured, and as its program would take at its median
    costs; what each rank sent, and keeps between steps. Every rank calls it."""
    found, passes = recording.end(), recording.passes
    mine = found.traffic | kept_bytes(passes.part, optimizers)
    every = told_by_all(mine, passes.world.mesh.everyone, passes.device)
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


def expected(order: Order, measured: Timeline) -> Timeline:
    """The order's simulated timeline at the median costs of a measured one, without messages' time."""
    samples: dict[tuple[str, int], list[float]] = {}
    for span in measured:
        samples.setdefault((span.args["op"], span.args["stage"]), []).append(span.seconds)
    costs = Costs({key: statistics.median(seconds) for key, seconds in samples.items()})
    return simulate(assemble(order), costs).timeline()
