"""Faults on purpose: at a named point, a step or a draw of chance, the process dies, stops or is misled."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from shunter.config import yaml
from shunter.config.base import Config
from shunter.config.check import parse
from shunter.config.nearest import nearest
from shunter.config.seed import derive_seed
from shunter.record import points

VARIABLE = "SHUNTER_INJECT"
Kind = Literal["kill", "stop", "exception", "nan", "full-disk", "truncate", "slow"]
# What each kind does, for people; the two that mislead only work where the product asks for a directive.
KINDS: dict[str, str] = {
    "kill": "SIGKILL: the process ends at once, no handler runs",
    "stop": "SIGTERM: the job saves its state and stops",
    "exception": "an error that no code expects",
    "nan": "the step's loss is not a number",
    "full-disk": "the next write fails because the disk is full",
    "truncate": "a shard of a checkpoint loses its second half after its digest was taken",
    "slow": "the process sleeps for `seconds`, at this passage and at each later one",
}
DIRECTIVES = {"nan": "train.step", "truncate": "checkpoint.shard"}


class Injected(RuntimeError):
    """The exception of the kind `exception`."""


class Fault(Config):
    """One fault: it strikes at the `hit`-th passage of `point` (with `step`, if given)."""

    kind: Kind = Field(description="What happens.")
    point: str = Field(description="Where: a name from the list of points.")
    step: int | None = Field(None, ge=0, description="Only at this step of a training.")
    job: str | None = Field(None, description="Only in the job of this name.")
    rank: int | None = Field(None, ge=0, description="Only on this rank of a job on several processes.")
    action: str | None = Field(None, description="Only at this action of a pipeline, such as 1B2.")
    hit: int = Field(1, ge=1, description="The how-manieth matching passage it is.")
    probability: float = Field(
        1.0, gt=0, le=1, description="Strike at each matching passage with this chance instead."
    )
    seconds: float = Field(0.0, ge=0, description="Of slow: how long it sleeps.")

    @model_validator(mode="after")
    def _there(self) -> Fault:
        if (self.kind == "slow") != (self.seconds > 0):
            raise ValueError("seconds, above 0, belong to the kind slow")
        if self.point not in points.POINTS:
            near = nearest(self.point, list(points.POINTS))
            raise ValueError(f"no such point: {self.point!r}" + (f"; did you mean {near!r}?" if near else ""))
        if DIRECTIVES.get(self.kind, self.point) != self.point:
            raise ValueError(f"{self.kind} works at {DIRECTIVES[self.kind]} only, not at {self.point}")
        if self.action is not None and self.point != "pipeline.action":
            raise ValueError(f"action is of the point pipeline.action, not of {self.point}")
        return self


class Plan(Config):
    """Faults for one process. `seed` decides the draws of those with a probability."""

    seed: int = Field(0, ge=0, description="Seed of chance.")
    faults: list[Fault] = Field(min_length=1, description="The faults.")


class Injector:
    """The hook at every point: counts passages, and strikes."""

    def __init__(self, plan: Plan, rank: int | None = None, job: str | None = None) -> None:
        self.plan, self.rank, self.job = plan, rank, job
        self.passages: Counter[int] = Counter()
        self._said: set[int] = set()  # of those that strike again and again
        self.draws = [random.Random(derive_seed(plan.seed, "fault", i)) for i in range(len(plan.faults))]

    def __call__(self, point: str, facts: dict[str, Any]) -> str | None:
        if point == "job.begin":
            self.job = facts.get("job")
        for number, fault in enumerate(self.plan.faults):
            if fault.point != point or (fault.step is not None and facts.get("step") != fault.step):
                continue
            if fault.rank is not None and fault.rank != self.rank:
                continue
            if fault.action is not None and str(facts.get("action")) != fault.action:
                continue
            if fault.job is not None and facts.get("job", self.job) != fault.job:
                continue
            self.passages[number] += 1
            if fault.probability < 1:
                struck = self.draws[number].random() < fault.probability
            elif fault.kind == "slow":
                struck = self.passages[number] >= fault.hit
            else:
                struck = self.passages[number] == fault.hit
            if struck and fault.kind == "slow":
                if number not in self._said:
                    self._say(fault, facts)
                    self._said.add(number)
                time.sleep(fault.seconds)
            elif struck:
                directive = self._strike(fault, facts)
                if directive is not None:
                    return directive
        return None

    @staticmethod
    def _say(fault: Fault, facts: dict[str, Any]) -> None:
        at = ", ".join(f"{key} {value}" for key, value in facts.items())
        # write: print may be in the middle of another line; the process may be gone a moment later.
        os.write(2, f"injected {fault.kind} at {fault.point}{f' ({at})' if at else ''}\n".encode())

    def _strike(self, fault: Fault, facts: dict[str, Any]) -> str | None:
        self._say(fault, facts)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault.kind == "exception":
            raise Injected(f"injected at {fault.point}")
        elif fault.kind == "full-disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fault.kind if fault.kind in DIRECTIVES else None


def read(text: str, where: str = VARIABLE) -> Plan:
    """A plan from JSON. Raises ShunterError that names what is wrong."""
    source = yaml.parse(text, where)
    return parse(Plan, source.data, source)


def install_from_environment(rank: int | None = None, job: str | None = None) -> None:
    """Arm the faults of $SHUNTER_INJECT, and say so: nobody should run with faults unknowingly.

    rank, job: of this process, where a job has several.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    plan = read(text)
    count = len(plan.faults)
    print(f"warning: {count} injected fault{'s' * (count > 1)} armed by {VARIABLE}", file=sys.stderr)
    points.install(Injector(plan, rank, job))


def random_fault(seed: int, number: int, steps: int) -> Fault:
    """The `number`-th fault of a series: a kill at a point and a passage drawn from the seed."""
    draw = random.Random(derive_seed(seed, "series", number))
    # Those that every training passes: most have no pipeline.
    point = draw.choice(sorted(point for point in points.POINTS if not point.startswith("pipeline.")))
    hit = draw.randint(1, steps) if point.startswith("train.") else draw.randint(1, 3)
    return Fault(kind="kill", point=point, hit=hit)
