"""Many layouts at once: one array for each degree, so that the cost model is written once and runs on all.

A single layout is an array of length 1. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.fabric import Fabric
from shunter.plan.practice import RECOMPUTE, Coefficients, Practice
from shunter.plan.profile import Profile

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SCHEDULES = ("1f1b", "interleaved-1f1b", "zb1p", "zbv", "gpipe")


@dataclass(frozen=True)
class Question:
    """What a layout is asked for. batch: rows of a step. row: tokens of a row. profile: what the
    model's parts and messages take on the machine, where that was measured. scored: share of the tokens whose
    next word the head is asked for."""

    spec: DecoderSpec
    fabric: Fabric
    batch: int
    row: int
    practice: Practice
    coefficients: Coefficients
    profile: Profile | None = None
    scored: float = 1.0

    def measured(self, profile: Profile, where: str = "") -> Question:
        """With a profile, whose seconds the coefficients of products and links, 1 to begin with, divide.

        Raises ShunterError for a profile of something else, and for a cluster that is not one node of as
        many devices as it had ranks.
        """
        profile.must_be_for(self.spec, self.row, self.practice.products, where)
        if (
            self.fabric.world != profile.ranks
            or len(self.fabric.levels) > 1
            or self.fabric.terrain is not None
        ):
            raise ShunterError(
                f"the profile is of {profile.ranks} ranks on one node, the cluster has {self.fabric.world}",
                where=where,
                mend="Measure with as many --ranks, or plan without --profile.",
            )
        source = f"as profiled on {profile.machine}, {profile.date}"
        known = self.coefficients.but(source, products=1.0, links=1.0)
        return replace(self, coefficients=known, profile=profile)

    @cached_property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.row

    @cached_property
    def flops(self) -> float:
        """Of a step by the model's formula, without what is computed twice."""
        return self.tokens * self.spec.flops_per_token(self.row)


@dataclass(frozen=True)
class Choices:
    """Equally long arrays: degrees of `Grid`; rows of a micro-batch on a data rank; number of the schedule
    among SCHEDULES; stages a rank; number of the recomputation among RECOMPUTE."""

    pp: Ints
    dp: Ints
    fsdp: Ints
    cp: Ints
    tp: Ints
    ep: Ints
    etp: Ints
    rows: Ints
    schedule: Ints
    chunks: Ints
    recompute: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]] | Ints) -> Choices:
        """From one line a layout."""
        table = np.asarray(rows, dtype=np.int64).reshape(-1, len(fields(cls)))
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    @classmethod
    def one(
        cls,
        grid: Grid,
        rows: int,
        schedule: str = "1f1b",
        chunks: int = 1,
        recompute: str = "none",
    ) -> Choices:
        """A single layout."""
        degrees = (grid.pp, grid.dp, grid.fsdp, grid.cp, grid.tp, grid.ep, grid.etp)
        return cls.of([[*degrees, rows, SCHEDULES.index(schedule), chunks, RECOMPUTE.index(recompute)]])

    def __len__(self) -> int:
        return len(self.pp)

    def take(self, which: Any) -> Choices:
        """Some of them, by numbers or by a mask."""
        return Choices(*(getattr(self, each.name)[which] for each in fields(self)))

    def grid(self, index: int) -> Grid:
        names = ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp")
        return Grid(**{name: int(getattr(self, name)[index]) for name in names})

    def settings(self, index: int) -> Mapping[str, Any]:
        """As a person writes them."""
        found: dict[str, Any] = {
            name: int(getattr(self, name)[index]) for name in ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp")
        }
        found["schedule"] = SCHEDULES[self.schedule[index]]
        found["chunks"] = int(self.chunks[index])
        found["microbatch"] = int(self.rows[index])
        found["recompute"] = RECOMPUTE[self.recompute[index]]
        return found

    @cached_property
    def known(self) -> dict[Any, tuple[Question, dict[str, float]]]:
        """Bytes of a rank by what it has, as `score` finds them; with the question, whose id is in the key
        and must not become another's."""
        return {}

    @cached_property
    def data(self) -> Ints:
        """Ranks among which a step's rows are shared out."""
        return self.dp * self.fsdp

    @cached_property
    def stage_ranks(self) -> Ints:
        """Ranks of one stage."""
        return self.dp * self.fsdp * self.cp * self.tp

    @cached_property
    def edp(self) -> Ints:
        """Copies of each expert."""
        return self.stage_ranks // (self.ep * self.etp)

    def shards(self, practice: Practice) -> Ints:
        """Parts into which a rank's dense weights are cut besides tensor parallelism."""
        if practice.sharding == "none":
            return np.ones_like(self.fsdp)
        both = self.fsdp * self.cp
        return both if practice.context else np.where(self.fsdp > 1, both, 1)

    def expert_shards(self, practice: Practice) -> Ints:
        if practice.sharding == "none":
            return np.ones_like(self.fsdp)
        return np.where(self.shards(practice) > 1, self.edp, 1)

    def updates(self, practice: Practice) -> tuple[Ints, Ints]:
        """Parts into which the optimizer's state is cut besides tensor and expert parallelism: of dense
        weights, and of experts."""
        if practice.zero:
            return self.data * self.cp, self.edp
        return self.shards(practice), self.expert_shards(practice)

    def microbatches(self, batch: int) -> Ints:
        """Of a step on each data rank; the last may be smaller."""
        return np.ceil(np.ceil(batch / self.data) / self.rows).astype(np.int64)
