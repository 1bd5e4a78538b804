"""Whether the host has room for layers that are put aside: asked before anything is trained."""

from __future__ import annotations

import os

from shunter.config.errors import ShunterError
from shunter.recipe.disk import human
from shunter.record.memory import available
from shunter.train.layout_describe import host_bytes
from shunter.train.layout_parts import Plan


def must_have_room(plan: Plan, rank: int) -> None:
    """Raise ShunterError where a rank's layers would take more of the host's memory than is its share of what
    is free now. Where the system does not tell, nothing is refused."""
    needed = host_bytes(plan, rank)
    free = available() if needed else None
    if free is None:
        return
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", plan.grid.size))
    if needed > free / beside:
        raise ShunterError(
            f"rank {rank} puts up to {human(needed)} of its layers aside, and the host has {human(free)} "
            f"free for {beside} such ranks",
            where="how.parallel.offload",
            mend="Put fewer layers aside, give recompute the numbers of some, or use smaller micro-batches.",
        )
