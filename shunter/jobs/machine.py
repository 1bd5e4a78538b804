"""This machine as a cluster's file would have it, and whether a plan is for it. Imports without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shunter.config.errors import ShunterError
from shunter.recipe.attempt import environment_record

if TYPE_CHECKING:
    from shunter.cluster.cluster import Cluster
    from shunter.plan.plan import Plan

WHERE = "how.parallel.plan"
AGAIN = "Plan again for this machine (how.parallel: auto does), or run it where the plan is for."


def accelerators() -> int:
    """GPUs that are here, as far as that is seen without torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.device_count())
    nodes = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdecimal()]
    return max(len(environment_record()["devices"]), len(nodes), int(Path("/dev/dxg").exists()))


def must_be_here(plan: Plan, device: str = "auto") -> Sequence[str]:
    """Warnings. Raises ShunterError where a plan is for other devices than this machine has: of another type,
    another kind, or more of a node than are here.

    device: as `how.device`. What is looked at are a plan's kinds and nodes. Of several machines this one is
    looked at alone; a kind that no shipped machine has is not known by its name.
    """
    from shunter.cluster.cluster import Cluster
    from shunter.cluster.description import Description

    if plan.machine is None:
        return []
    cluster = plan.part_of(Cluster.of(Description.model_validate(plan.machine)))
    count = 0 if device == "cpu" else accelerators()
    here = "gpu" if count or device.startswith("cuda") else "cpu"
    if all(each.spec.type != here for each in cluster.devices):
        what = {"gpu": "GPUs", "cpu": "CPUs"}
        raise ShunterError(
            f"the plan is for {plan.cluster}, whose devices are {what[cluster.devices[0].spec.type]}, and "
            f"this job runs on {what[here]}",
            where=WHERE,
            mend=AGAIN,
        )
    _same_kind(plan, cluster, here)
    each = min(len(node.ranks) for node in cluster.nodes)
    if here == "gpu" and count and each > count:
        raise ShunterError(
            f"the plan is for {each} devices of a machine, and here are {count}", where=WHERE, mend=AGAIN
        )
    cores = int(environment_record()["cores"])
    if here == "cpu" and each > cores:
        return [
            f"the plan is for {each} processes, and here are {cores} cores: steps take longer than planned"
        ]
    return []


def _same_kind(plan: Plan, cluster: Cluster, here: str) -> None:
    from shunter.cluster import files
    from shunter.plan.probe import shipped

    record = environment_record()
    names: list[str] = record["devices"] if here == "gpu" else [record["cpu"]]
    measured = cluster.description.measured
    if measured is not None:
        theirs = measured.machine.partition(" x ")[2]
        if theirs and names and not any(_alike(theirs, name) for name in names):
            raise ShunterError(
                f"the plan is for a machine that was measured, {measured.machine}, and this is {names[0]}",
                where=WHERE,
                mend=AGAIN,
            )
        return
    kinds, known = {each.kind for each in cluster.devices}, set(files.kinds())
    mine = {next(iter(found.devices)) for name in names if (found := shipped(name)) is not None}
    if here == "gpu" and mine and kinds <= known and not kinds & mine:
        raise ShunterError(
            f"the plan is for {plan.cluster} ({', '.join(sorted(kinds))}), and here is {names[0]}",
            where=WHERE,
            mend=AGAIN,
        )


def _alike(one: str, other: str) -> bool:
    """Drivers and torch name a device alike but for the maker."""
    plain, there = (name.casefold().removeprefix("nvidia ").strip() for name in (one, other))
    return plain == there


def described(ranks: int, device: str = "auto") -> tuple[Cluster, str] | None:
    """So many devices of this machine, and what describes them: a measurement that was made before, or what
    is shipped of that device. None where nothing does; nothing is measured here."""
    from shunter.cluster import files
    from shunter.plan.probe import measured_before, shipped

    gpu = device != "cpu" and accelerators() > 0
    names = environment_record()["devices"] if gpu else []
    if gpu or not accelerators():  # where there are GPUs, they are what a probe measures
        found = measured_before()
        if found is not None and found.world >= ranks:
            return _first(found, ranks), "as shunter probe measured it"
    if not gpu:
        cluster = files.find("cpu")
        return (_first(cluster, ranks), "as a CPU in general") if cluster.world >= ranks else None
    description = shipped(names[0]) if names else None
    if description is None:
        return None
    from shunter.cluster.cluster import Cluster as Made

    cluster = Made.of(description)
    return (_first(cluster, ranks), f"as {description.name}, which ships") if cluster.world >= ranks else None


def _first(cluster: Cluster, ranks: int) -> Cluster:
    return cluster if cluster.world == ranks else cluster.subcluster(range(ranks))
