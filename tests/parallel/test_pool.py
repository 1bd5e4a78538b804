"""The workers that tests share: what one layout opens, the next ones use, and nothing grows.

Process groups cost a process sockets and threads, and gloo gives few of them back. What this cannot show:
what NCCL keeps, and memory of the device.
"""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest
import torch.distributed as dist

from shunter.parallel.context import sight
from shunter.parallel.mesh import Groups
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.world import World
from tests.draws import some
from tests.parallel.pool import GROUPS, SECONDS, Pool, WorkerFailed
from tests.train import layouts
from tests.train.layouts import CPU, Case


def opened(rank: int, groups: Groups, argument: None) -> tuple[int, int]:
    """Descriptors and threads of this worker."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def pass_through(rank: int, groups: Groups, case: Case) -> None:
    """The layout is made anew, and one gradient under it."""
    parallel = case.layout
    world = World.create(parallel.grid, rank, CPU, GROUPS)
    passes = LaidOutPasses(layouts.model(case), parallel, world, case.length, optimizer=case.optimizer)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        return split(split(ids, world.data.size)[world.data.index], parallel.parts)

    layouts.gradients(case, passes, parts)


def stays(pool: Pool, cases: list[Case]) -> None:
    """Groups of all cases are made beforehand, and some layouts of all workers are tried: threads that torch
    starts once come with the first backward and the first sharded weights."""
    grids = [case.layout.grid for case in cases]
    pool.run(opened, pool.size, None, *grids)
    for case in sorted(cases, key=lambda case: -case.layout.grid.size)[:8]:
        pool.run(pass_through, case.layout.grid.size, case, case.layout.grid)
    before = pool.run(opened, pool.size)
    for case in cases:
        pool.run(pass_through, case.layout.grid.size, case, case.layout.grid)
    assert pool.run(opened, pool.size) == before


@some("count", [6, 30])
def test_layouts_leave_descriptors_and_threads_as_they_were(pool: Pool, count: int) -> None:
    stays(pool, layouts.drawn(count, (2, 3, 4)))


def careless(rank: int, groups: Groups, argument: None) -> None:
    if rank == 0:
        dist.barrier(group=groups.side)  # to which the other does not come
    sight.TILE = 4


def test_a_task_that_leaves_a_constant_changed_is_told_and_who_waits_for_it_is_not_waited_for() -> None:
    pool = Pool(2)
    begin = time.monotonic()
    told = r"rank 1:[^$]*left shunter.parallel.context.sight.TILE changed[^$]*rank 0 does not answer"
    with pytest.raises(WorkerFailed, match=told):
        pool.run(careless, 2)
    pool.close()
    assert time.monotonic() - begin < SECONDS / 2


@pytest.mark.long
def test_two_hundred_layouts_leave_them_as_they_were() -> None:
    workers = Pool(8)
    try:
        stays(workers, layouts.drawn(200, (2, 3, 4, 6, 8, 8)))
    finally:
        workers.close()
