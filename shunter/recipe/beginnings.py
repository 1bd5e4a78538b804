"""Runs of a sweep that are stopped by their beginnings: `stop_early:` beside `matrix:`.

All variants run for the same few samples; by what their logs say then, some are not gone on with. They keep
their checkpoints: without `stop_early` the same recipe goes on with them. What a log says of a run's end is
for its kind of job to judge (`job.JudgesBeginnings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.recipe import fields
from shunter.recipe.job import Control, JobConfig, JudgesBeginnings

if TYPE_CHECKING:
    from shunter.recipe.graph import Node


class StopEarly(Config):
    """Stops some variants of a sweep after their beginnings."""

    after: float = Field(
        0.1, gt=0, lt=1, description="When, as a share of the samples of the variant that has fewest."
    )
    share: float = Field(0.5, gt=0, lt=1, description="Share of the variants to stop.")
    tolerance: float = Field(
        0.0,
        ge=0,
        description="How far below the worst that goes on a score may be that goes on too.",
    )


@dataclass(frozen=True)
class Verdict:
    """After `samples` of each: a score by variant, higher is better, and those to stop."""

    samples: int
    scores: Mapping[str, float]
    stopped: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Halting:
    """The control of a run that stops once it has done `steps`, by its own log; `see` is its listener."""

    def __init__(self, control: Control, steps: int) -> None:
        self.control, self.steps = control, steps
        self.reached = False

    def see(self, event: Mapping[str, Any]) -> None:
        """Look at an event."""
        if event.get("event") == "metrics" and int(event.get("step", 0)) >= self.steps:
            self.reached = True

    def stop_requested(self) -> bool:
        """True once the run has done its part, or shall stop for another reason."""
        return self.reached or self.control.stop_requested()

    def take_save_request(self) -> bool:
        """As without."""
        return self.control.take_save_request()


def samples(wanted: StopEarly, job: JudgesBeginnings, configs: Sequence[JobConfig]) -> int:
    """After how many samples the variants of these configurations are compared. Raises ShunterError where one
    of them logs nothing until then, or has as good as ended."""
    paces = [job.pace(config) for config in configs]
    until = int(wanted.after * min(pace.steps * pace.samples for pace in paces))
    latest = max(pace.every * pace.samples for pace in paces)
    if latest > until:
        raise ShunterError(
            f"the beginnings end after {until} samples, and one of the variants logs its first line after "
            f"{latest}",
            mend="Lower how.log_every, or raise `after`.",
        )
    return until


def check(wanted: StopEarly, job: object, swept: Sequence[str], configs: Sequence[JobConfig]) -> None:
    """Raise ShunterError for a sweep whose variants cannot be judged. swept: its keys."""
    if not isinstance(job, JudgesBeginnings):
        raise ShunterError(
            "the beginnings of jobs of this kind say nothing of their ends",
            mend="Leave stop_early out; `sft` and `pretrain` have it.",
        )
    other = [key for key in swept if key.split(".")[0] not in job.compared]
    if other or not swept:
        able = ", ".join(sorted(job.compared))
        raise ShunterError(
            f"runs that differ in {other[0]} cannot be compared by their beginnings"
            if other
            else "there is no matrix, and so nothing to compare",
            mend=f"Sweep what is below {able}, and leave stop_early out of other sweeps.",
        )
    if len(configs) < 2:
        raise ShunterError("one variant has none to be compared with", mend="Leave stop_early out.")
    samples(wanted, job, configs)


def steps_until(job: JudgesBeginnings, config: JobConfig, until: int) -> int:
    """Steps after which a run has seen so many samples."""
    return -(-until // job.pace(config).samples)


def judge(
    wanted: StopEarly, job: JudgesBeginnings, logs: Mapping[str, tuple[JobConfig, Path]], until: int
) -> Verdict:
    """By the logs of all variants. What they hold of later steps changes nothing."""
    told = {name: (path, job.pace(config).samples) for name, (config, path) in logs.items()}
    scores, stopped = job.judge(told, until, wanted.share, wanted.tolerance)
    return Verdict(until, scores, tuple(sorted(stopped)))


def alike(nodes: Sequence[Node]) -> list[list[Node]]:
    """Variants of a job in groups that differ in its own sweep alone: those of other models or data, which it
    has from the sweeps of others, are not compared."""
    groups: dict[tuple[tuple[tuple[str, str], str], ...], list[Node]] = {}
    for node in nodes:
        theirs = tuple((axis, label) for axis, label in node.labels.items() if axis[0] != node.stem)
        groups.setdefault(theirs, []).append(node)
    return list(groups.values())


def without(node: Node, gone: Callable[[str], bool]) -> Node | None:
    """The job made of what is left of its inputs; None where one of them is all that it reads there."""
    lost = {field for field, names in node.inputs.items() if any(map(gone, names))}
    if not lost:
        return node
    left = {field: tuple(name for name in node.inputs[field] if not gone(name)) for field in lost}
    if any(field in node.single or not names for field, names in left.items()):
        return None
    changes: dict[fields.Path, Any] = {
        reference.path: [*left[reference.field]]
        for reference in fields.references(node.config)
        if reference.field in lost
    }
    config = fields.replace(node.config, changes)
    return replace(node, config=config, inputs={**node.inputs, **left})
