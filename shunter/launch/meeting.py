"""Where the processes of one job meet."""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

PREFIX = "SHUNTER_MEETING"  # of the job's keys: a crew's jobs share one store


def meeting(rank: int, size: int, timeout: timedelta) -> Store:
    """The store through which the ranks of this job find each other; how to reach it stands in the
    variables that torchrun sets."""
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    prefix = os.environ.get(PREFIX)
    return PrefixStore(prefix, store) if prefix else store
