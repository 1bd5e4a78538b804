"""The job `emulate`: layouts on a cluster that is not here, by processes that sleep as it would work."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.recipe.job import How, JobConfig, JobContext

LOADS = ("shunter.parallel.emulate",)  # by the process that ranks are forked from


class CaseConfig(Config):
    """One layout."""

    grid: list[int] = Field(
        min_length=1, description="Rank of each place: pipelines one after the other, stages in order."
    )
    pp: int = Field(ge=1, description="Stages of a pipeline.")
    microbatches: int = Field(ge=1, description="Micro-batches of a pipeline in a step.")
    forward: list[float] = Field(description="Seconds of a micro-batch's forward, by stage, at speed 1.")
    backward: list[float] = Field(description="Seconds of its backward, by stage, at speed 1.")
    message: float = Field(ge=0, description="Bytes that pass between two stages for a micro-batch.")
    gradients: list[float] = Field(description="Bytes that the replicas of a stage reduce, by stage.")
    buckets: int = Field(1, ge=1, description="Parts in which they are reduced.")
    overlap: bool = Field(False, description="Whether a part begins as soon as its backward is done.")
    by: str | None = Field(
        None, description="Name of the link that all messages take, whatever joins two nodes."
    )


class EmulateHow(How):
    """How to measure."""

    timeout: float = Field(120.0, gt=0, description="Seconds after which a rank that is silent is given up.")


class EmulateConfig(JobConfig):
    """Runs layouts over emulated links: 1F1B and a ring a stage, on processes that sleep."""

    cluster: Description = Field(
        description="Devices and links, as in a cluster's file; each device is a process."
    )
    cases: dict[str, CaseConfig] = Field(min_length=1, description="Layouts by name; they take turns.")
    speeds: dict[str, float] = Field({}, description="Speed of a group's nodes, where it is not 1.")
    repeats: int = Field(5, ge=1, description="Steps that are measured, after one to get warm.")
    within: float = Field(
        0.0,
        ge=0,
        description="Share within which a case's two least steps must agree, or it gets more, four times "
        "as many at most; 0: no case does.",
    )
    how: EmulateHow = Field(default_factory=EmulateHow, description="How to measure.")


class EmulateJob:
    """Writes `emulated.json`: seconds of each step by case. What it makes is a measurement; a new one takes
    `--redo`."""

    kind: ClassVar[str] = "emulate"
    produces: ClassVar[str] = "emulation"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = EmulateConfig

    def check(self, config: EmulateConfig, base: Path) -> Sequence[str]:
        cluster = Cluster.of(config.cluster)
        for group, speed in config.speeds.items():
            if group not in config.cluster.nodes or not speed > 0:
                raise ShunterError(
                    f"{speed:g} is no speed of nodes of this cluster", where=f"speeds.{group}",
                    mend=f"Give one above 0 for {', '.join(config.cluster.nodes)}.",
                )  # fmt: skip
        for name, case in config.cases.items():
            where = f"cases.{name}"
            if len(set(case.grid)) < len(case.grid) or not set(case.grid) <= set(range(cluster.world)):
                raise ShunterError(
                    f"{case.grid} are no different ranks of {cluster.world}", where=f"{where}.grid"
                )
            if len(case.grid) % case.pp:
                raise ShunterError(
                    f"{len(case.grid)} ranks are no whole pipelines of {case.pp}", where=f"{where}.grid"
                )
            for key in ("forward", "backward", "gradients"):
                if len(getattr(case, key)) != case.pp:
                    raise ShunterError(f"give one for each of {case.pp} stages", where=f"{where}.{key}")
            if case.by is not None and case.by not in config.cluster.links:
                raise ShunterError(
                    f"{case.by!r} is no link of this cluster", where=f"{where}.by",
                    mend=f"Its links are {', '.join(config.cluster.links)}.",
                )  # fmt: skip
        return []

    def run(self, context: JobContext[EmulateConfig]) -> dict[str, Any]:
        config = context.config
        cluster = Cluster.of(config.cluster)
        speeds = [config.speeds.get(cluster.node(rank).group, 1.0) for rank in range(cluster.world)]
        cases = {}
        for name, case in config.cases.items():
            link = config.cluster.links[case.by] if case.by else None
            cases[name] = {
                **case.model_dump(mode="json", exclude={"by"}),
                "link": [link.latency, link.bandwidth] if link else None,
                "speeds": speeds,
            }
        request = {
            "cases": cases,
            "repeats": config.repeats,
            "within": config.within,
            "timeout": config.how.timeout,
            "links": [
                [a, b, cluster.latency(a, b), cluster.bandwidth(a, b)]
                for a in range(cluster.world)
                for b in range(cluster.world)
                if a != b
            ],
        }
        found = elastic.launch(
            "shunter.jobs.emulate", request, cluster.world, context.work / "ranks", threads=1,
            poll=lambda: None,
        )  # fmt: skip
        (context.out / "emulated.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        return {name: statistics.median(seconds) for name, seconds in found.items()}


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One device."""
    import torch
    import torch.distributed as dist

    from shunter.parallel.emulate import Case, measure

    torch.set_num_threads(1)
    wait = timedelta(seconds=request["timeout"])
    dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=wait)
    between = {(a, b): (latency, rate) for a, b, latency, rate in request["links"]}
    cases = {name: Case.from_json(case) for name, case in request["cases"].items()}
    return dict(measure(cases, between, rank, request["repeats"], request["within"]))


JOB = EmulateJob()
