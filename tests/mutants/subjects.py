"""The fixed cases: what is done on the ranks, and what of it is not as in one process.

Small, and few: each is to be revealing for several bugs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.data.tokens import Batch
from shunter.layout.grid import Grid
from shunter.parallel.mesh import Groups, Peers
from shunter.train.shares import noised_batches, split
from shunter.train.world import World
from tests.mutants.mutant import Mutant
from tests.parallel.pool import GROUPS, Pool, Task
from tests.surgery import tuning
from tests.train import layouts
from tests.train.checkpoint import saving
from tests.train.layouts import CPU, Case

# Runs a task with an argument on the ranks of a grid, mutated or not.
Run = Callable[[Task, Any, Grid], list[Any]]


@dataclass(frozen=True)
class Subject:
    """wrong: what differs on any rank, as `Mutant.seen` begins; empty where all is well."""

    wrong: Callable[[Run], list[str]]


def laid_out(case: Case) -> Subject:
    """A few steps, compared with one process's; see layouts.differs."""
    expected = cache(lambda: layouts.alone(case))

    def wrong(run: Run) -> list[str]:
        answers = run(layouts.task, case, case.layout.grid)
        return [found for each in answers for found in layouts.differs(each, expected())]

    return Subject(wrong)


def decoder(**spec: Any) -> dict[str, Any]:
    """Odd sizes, so that parts differ."""
    return {
        "dim": 8,
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "ffn_dim": 13,
        "vocab_size": 29,
        "max_positions": 64,
        "qkv_bias": False,
        "qk_norm": False,
        "tied": False,
        "experts": None,
        **spec,
    }


def case(parallel: dict[str, Any], spec: dict[str, Any], **more: Any) -> Case:
    axes = dict.fromkeys(layouts.ALL, 1)
    how = {"schedule": "1f1b", "microbatches": 2, **parallel}
    # 1 / 7 of the rows is nobody's even share.
    return Case(**{"rows": 7, "length": 8, "z_loss": 0.01, "ragged": True, "seed": 3, **more}, spec=spec,
                parallel={**axes, **how})  # fmt: skip


SIGMOID = {
    "num_experts": 4,
    "per_token": 2,
    "ffn_dim": 6,
    "router": "sigmoid",
    "shared_ffn_dim": 6,
    "bias_update": 0.01,
    "z_loss": 0.1,
}
CROWDED = {"num_experts": 4, "per_token": 2, "ffn_dim": 6, "capacity": 0.8}
SOFTMAX = {"num_experts": 2, "per_token": 1, "ffn_dim": 6, "normalise": False}


def noise(rank: int, groups: Groups, grid: Grid) -> list[list[int]]:
    """Input tokens of a rank's micro-batches with noise in them."""
    world = World.create(grid, rank, CPU, GROUPS)
    ids = split(split(np.arange(7), world.data.size)[world.data.index], 2)
    return [row.tolist() for batch in noised(ids, world.data) for row in batch.tokens]


def noised(parts: list[np.ndarray], data: Peers) -> list[Batch]:
    """As the training loop makes them, of seven rows."""
    zeros = [np.zeros((len(ids), 12), dtype=np.int64) for ids in parts]
    batches = [Batch(each, each, each, each, each[:, 0]) for each in zeros]
    return noised_batches(batches, 0.5, 1000, 1, 2, 7, data)


def noisy(grid: Grid) -> Subject:
    """The noise in a row is its own, wherever the row is."""

    def wrong(run: Run) -> list[str]:
        found = [row for rows in run(noise, grid, grid) for row in rows]
        (whole,) = noised([np.arange(7)], Peers.alone())
        return [] if found == whole.tokens.tolist() else ["tokens"]

    return Subject(wrong)


def saved(source: str, target: str) -> Subject:
    """Saved under one layout, read under another."""

    def wrong(run: Run) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            for task, name in ((saving.save, source), (saving.load, target)):
                made = saving.case(name)
                answers = run(task, (made, Path(folder)), made.layout.grid)
        return [found for each in answers for found in each]

    return Subject(wrong)


def adapted(case: Case, **adapter: Any) -> Subject:
    """A few steps of adapters; see `laid_out`."""
    each = tuning.Tuned(case, adapter)
    expected = cache(lambda: tuning.alone(each))

    def wrong(run: Run) -> list[str]:
        answers = run(tuning.drawn_task, each, case.layout.grid)
        return [found for other in answers for found in layouts.differs(other, expected())]

    return Subject(wrong)


SUBJECTS: dict[str, Subject] = {
    "dense": laid_out(case({"dp": 2, "tp": 2}, decoder(qk_norm=True))),
    "heads": laid_out(case({"tp": 4}, decoder())),
    "plain": laid_out(case({"tp": 2, "sequence": False}, decoder())),
    "sharded": laid_out(case({"fsdp": 2}, decoder())),
    "hybrid": laid_out(case({"dp": 2, "fsdp": 2}, decoder(), rows=9)),
    "ring": laid_out(case({"cp": 2, "attention": "ring"}, decoder(), length=16)),
    "ulysses": laid_out(case({"cp": 2, "attention": "ulysses"}, decoder(), length=16)),
    "pipeline": laid_out(case({"pp": 2, "microbatches": 3}, decoder(num_layers=2, tied=True), rows=6)),
    "recomputed": laid_out(case({"tp": 2, "recompute": "full"}, decoder())),
    "experts": laid_out(
        case({"dp": 2, "cp": 2, "ep": 2}, decoder(qk_norm=True, experts=SIGMOID), z_loss=0.0)
    ),
    "columns": laid_out(case({"tp": 2, "etp": 2}, decoder(qk_norm=True, experts=SOFTMAX))),
    "muon": laid_out(case({"fsdp": 2, "tp": 2}, decoder(), optimizer="muon")),
    "shared state": laid_out(case({"dp": 2, "tp": 2, "zero": 1}, decoder(qk_norm=True))),
    "shared experts": laid_out(
        case({"dp": 2, "cp": 2, "ep": 2, "zero": 1}, decoder(qk_norm=True, experts=SIGMOID), z_loss=0.0)
    ),
    "shared matrices": laid_out(case({"dp": 2, "zero": 1}, decoder(), optimizer="muon")),
    "dropped": laid_out(case({"dp": 2, "tp": 2}, decoder(), dropout=(0.2, 0.3))),
    "dropped in parts": laid_out(case({"cp": 2}, decoder(), length=16, dropout=(0.2, 0.0))),
    "filled": laid_out(
        case({"dp": 2, "ep": 2, "pad_experts": True}, decoder(qk_norm=True, experts=CROWDED), z_loss=0.0)
    ),
    "packed": adapted(case({"tp": 2}, decoder()), rank=2, quantise="nf4"),
    "adapted experts": adapted(case({"dp": 2, "etp": 2}, decoder(qk_norm=True, experts=SOFTMAX)), rank=2),
    "noise": noisy(Grid(dp=2)),
    "stages saved": saved("pp", "one"),
    "sharded saved": saved("fsdp", "one"),
    "to tensor ranks": saved("one", "tp"),
    "experts saved": saved("ep", "one"),
    "shared state saved": saved("zero", "one"),
}


def plainly(pool: Pool) -> Run:
    """Runs as things are."""
    return lambda task, argument, grid: pool.run(task, grid.size, argument, grid)


class Refused(Exception):
    """What ranks said instead of an answer."""


def with_bug(pool: Pool, mutant: Mutant) -> Run:
    """Runs with a mutant in all workers. Raises Refused if all ranks raise a ShunterError."""

    def run(task: Task, argument: Any, grid: Grid) -> list[Any]:
        answers = pool.run(_mutated, grid.size, (mutant.name, task, argument), grid)
        if said := [each for each in answers if isinstance(each, Refused)]:
            assert len(said) == len(answers), f"some ranks alone refuse: {said}"
            raise said[0]
        return answers

    return run


def _mutated(rank: int, groups: Groups, request: tuple[str, Task, Any]) -> Any:
    from tests.mutants.table import MUTANTS

    name, task, argument = request
    with MUTANTS[name].applied():
        try:
            return task(rank, groups, argument)
        except ShunterError as error:  # not raised here: the pool would start all its workers anew
            return Refused(str(error))
