"""The job `rehearse`: a schedule on real processes whose stages sleep, measured beside its simulation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.recipe.job import How, JobConfig, JobContext
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.order import Order
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate

LOADS = ("shunter.parallel.rehearse",)  # by the process that ranks are forked from


class RehearseHow(How):
    """How to measure."""

    timeout: float = Field(120.0, gt=0, description="Seconds after which a rank that is silent is given up.")


class RehearseConfig(JobConfig):
    """Tries a schedule on processes of this machine, with sleeps in the place of work."""

    schedule: str = Field("1f1b", description="Order of the work; `shunter schedules` lists them.")
    ranks: int = Field(2, ge=2, description="Processes.")
    microbatches: int = Field(4, ge=1, description="Micro-batches in a step.")
    chunks: int | None = Field(None, ge=1, description="Stages on each rank, where that can be chosen.")
    group: int | None = Field(None, ge=1, description="Micro-batches that pass together, likewise.")
    recompute: bool = Field(False, description="Forwards are done once more before their backwards.")
    forward: float = Field(0.03, gt=0, description="Seconds of a rank's forward of one micro-batch.")
    input_grad: float = Field(0.03, gt=0, description="Seconds of its gradient of the input.")
    weight_grad: float = Field(0.03, gt=0, description="Seconds of its gradient of the weights.")
    repeats: int = Field(5, ge=1, description="Steps that are measured, after one to get warm.")
    how: RehearseHow = Field(default_factory=RehearseHow, description="How to measure.")

    def order(self) -> Order:
        """What each rank does. Raises ShunterError for a schedule that does not exist or does not fit."""
        order = schedule(self.schedule).build(
            self.ranks, self.microbatches, chunks=self.chunks, group=self.group
        )
        return recomputed(order) if self.recompute else order

    def costs(self, order: Order) -> Costs:
        """Seconds of each stage's operations: a rank's, split evenly over its stages."""
        return Costs.even(order.placement, self.forward, self.input_grad, self.weight_grad)


class RehearseJob:
    """Writes `rehearsal.json` (see `shunter.parallel.rehearse`) and both timelines.

    What it makes is a measurement of the machine that made it; a new one takes `--redo`.
    """

    kind: ClassVar[str] = "rehearse"
    produces: ClassVar[str] = "rehearsal"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = RehearseConfig

    def check(self, config: RehearseConfig, base: Path) -> Sequence[str]:
        config.order()
        return []

    def run(self, context: JobContext[RehearseConfig]) -> dict[str, Any]:
        from shunter.record.timeline import Timeline

        config = context.config
        order = config.order()
        simulated = simulate(assemble(order), config.costs(order))
        found = elastic.launch(
            "shunter.jobs.rehearse",
            {"config": config.model_dump(mode="json")},
            config.ranks,
            context.work / "ranks",
            threads=1,
            poll=lambda: None,
        )
        Timeline.from_json(found.pop("timeline")).save(context.out / "timeline-measured.json")
        simulated.timeline().save(context.out / "timeline-simulated.json")
        found["simulated"] = simulated.elapsed
        (context.out / "rehearsal.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        measured = statistics.median(found["seconds"])
        return {
            "step_seconds": measured,
            "simulated_seconds": simulated.elapsed,
            "measured_over_simulated": measured / simulated.elapsed,
            "idle": statistics.median(found["idle"]),
            "worked": found["worked"],
        }


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One rank of the rehearsal."""
    import torch
    import torch.distributed as dist

    from shunter.parallel.mesh import Groups
    from shunter.parallel.rehearse import rehearse

    torch.set_num_threads(1)
    config = RehearseConfig.model_validate(request["config"])
    wait = timedelta(seconds=config.how.timeout)
    dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=wait)
    groups = Groups.create(range(size), timeout=wait)
    order = config.order()
    found = rehearse(order, config.costs(order), groups, rank, repeats=config.repeats, seed=config.seed)
    if rank == 0 and found["worked"] > 1:
        raise ShunterError(
            f"a stage's own small work took {found['worked']:.1f} times its sleep, so nothing was measured",
            mend="Give longer times, or look for other work on this machine.",
        )
    return found


JOB = RehearseJob()
