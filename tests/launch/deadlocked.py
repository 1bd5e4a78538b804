"""Two ranks of which each waits for another collective, for two seconds at most, or one hangs."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shunter.launch.meeting import meeting
from shunter.parallel.lost import answering


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Rank 0 has words for what it does, and torch none for the other."""
    wait = timedelta(seconds=2)
    dist.init_process_group(
        "gloo", store=meeting(rank, size, timedelta(minutes=1)), rank=rank, world_size=size, timeout=wait
    )
    other = dist.new_group([0, 1], timeout=wait)
    if rank == 0:
        with answering(rank, "add up gradients"):
            dist.all_reduce(torch.ones(3))
    elif request.get("hangs"):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        time.sleep(600)
    else:
        dist.all_reduce(torch.ones(3), group=other)
    return {}
