"""Where the processes of one job meet."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

PREFIX = "SHUNTER_MEETING"  # of the job's keys: a crew's jobs share one store


def meeting(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The store through which the ranks of this job find each other; how to reach it stands in the
    variables that torchrun sets."""
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    prefix = os.environ.get(PREFIX)
    return dist.PrefixStore(prefix, store) if prefix else store
