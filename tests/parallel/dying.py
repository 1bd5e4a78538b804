"""One of two ranks, of which rank 1 dies or hangs: `python -m tests.parallel.dying RANK STORE die|hang`."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import Stage
from shunter.parallel.tree import Tree
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.lower import lower


def main(rank: int, place: str, how: str) -> int:
    """2 once the other rank is given up, with what was waited for."""
    wait = timedelta(seconds=3)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=wait)
    groups = Groups.create(range(2), timeout=wait)
    module = nn.Linear(4, 4)

    def compute(inputs: Tree, microbatch: int) -> Tree:
        if rank == 1 and microbatch == 2:
            if how == "die":
                os._exit(9)
            time.sleep(60)
        y = module(inputs.get("x", torch.ones(2, 4)))
        return {"loss": y.sum()} if rank else {"x": y}

    program = lower(assemble(schedule("1f1b").build(2, 6)))
    try:
        Executor(program, rank, {rank: Stage(compute, module)}, groups, torch.device("cpu")).run()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), *sys.argv[2:]))
