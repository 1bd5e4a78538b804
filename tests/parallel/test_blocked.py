"""Calls to others as ranks make them: who sleeps lets the others wait, and it is told so.

What this cannot show: how long a call takes; other processes may make any of them longer.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from shunter.parallel.blocked import blocked
from shunter.parallel.clock import Stamps, offset
from shunter.parallel.mesh import Groups
from shunter.record.split import Rank, split
from tests.parallel.pool import Pool

CPU = torch.device("cpu")
NAP = 0.15


def work(rank: int, groups: Groups, argument: Any) -> dict[str, Any]:
    assert groups.up is not None
    shift = offset(groups.up, groups.ranks, rank, CPU)
    stamps = Stamps(CPU)
    x = torch.ones(4)
    with blocked(stamps) as found:
        begin = time.perf_counter()
        if rank == 1:
            time.sleep(NAP)
        dist.all_reduce(x, group=groups.up)
        if rank == 0:
            time.sleep(2 * NAP)
            dist.isend(x, groups.ranks[1], group=groups.up).wait()
        else:
            pending = dist.irecv(x, groups.ranks[0], group=groups.up)
            time.sleep(NAP)  # beside the message: no waiting
            pending.wait()
        end = time.perf_counter()
    dist.all_reduce(x, group=groups.up)  # not within
    calls = [[*call[:3], call.begin + shift, call.end + shift] for call in found.calls()]
    return {"begin": begin + shift, "end": end + shift, "calls": calls}


def test_who_sleeps_lets_others_wait(pool: Pool) -> None:
    told = pool.run(work, 2)
    assert all({call[0] for call in each["calls"]} <= {"collective", "send", "recv"} for each in told)
    shares, _ = split([Rank.of(each) for each in told])
    assert shares[0].waiting > 0.8 * NAP  # at the sum
    assert 0.8 * NAP < shares[1].waiting < 2 * NAP  # for the message, of which half passed beside its sleep
    assert shares[0].compute > 1.9 * NAP
    assert shares[1].compute > 1.9 * NAP
    for one in shares:
        assert one.compute + one.communication + one.waiting <= one.seconds * (1 + 1e-6)


def test_nothing_stays_wrapped(pool: Pool) -> None:
    before = dist.ProcessGroup.allreduce, dist.Work.wait
    with blocked(Stamps(CPU)):
        assert dist.ProcessGroup.allreduce is not before[0]
    assert (dist.ProcessGroup.allreduce, dist.Work.wait) == before
