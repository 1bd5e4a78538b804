"""Counted bytes: each kind of communication, whoever calls it, against what its definition says.

What this cannot show: what a backend really puts on the wire; nothing here looks below torch.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from shunter.parallel.counted import Counted, Sending, counted
from shunter.parallel.mesh import Groups
from tests.parallel.pool import Pool

N, SIZE = 3, 24  # ranks; bytes of a tensor of 6 floats


def each_kind(rank: int, groups: Groups, argument: Any) -> dict[str, tuple[dict[Sending, int], int]]:
    """Every function of torch.distributed on 6 floats a rank, and what was counted."""
    group = groups.side
    x, row = torch.ones(6), [torch.empty(6) for _ in range(N)]
    many, uneven = torch.ones(N, 6), [1, 0, 2]
    taken = [uneven[rank]] * N
    root = 1

    def send() -> None:
        if rank == 0:
            dist.send(x, 2, group=group)
        elif rank == 2:
            dist.recv(x, 0, group=group)

    def batch() -> None:
        asked = [
            dist.P2POp(dist.isend, x, (rank + 1) % N, group=group),
            dist.P2POp(dist.irecv, row[0], (rank - 1) % N, group=group),
        ]
        for work in dist.batch_isend_irecv(asked):
            work.wait()

    calls = {
        "all_gather": lambda: dist.all_gather(row, x, group=group),
        "all_gather_single": lambda: dist.all_gather_single(many.view(-1), x, group=group),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(many.view(-1), x, group=group),
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter(x, row, group=group),
        "reduce_scatter_single": lambda: dist.reduce_scatter_single(x, many.view(-1), group=group),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty(N, 6), many, group=group),
        "uneven": lambda: dist.all_to_all_single(
            torch.empty(sum(taken), 6), torch.ones(3, 6), taken, uneven, group=group
        ),
        "broadcast": lambda: dist.broadcast(x, root, group=group),
        "reduce": lambda: dist.reduce(x, root, group=group),
        "gather": lambda: dist.gather(x, row if rank == root else None, root, group=group),
        "scatter": lambda: dist.scatter(x, row if rank == root else None, root, group=group),
        "send": send,
        "batch": batch,
        "functional all_gather": lambda: functional.all_gather_tensor(x, 0, group).sum(),
        "functional all_reduce": lambda: functional.all_reduce(x, "sum", group).sum(),
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(many, "sum", 0, group).sum(),
        "functional all_to_all": lambda: functional.all_to_all_single(many, None, None, group).sum(),
        "functional broadcast": lambda: functional.broadcast(x, root, group).sum(),
    }
    found = {}
    for name, call in calls.items():
        with counted() as outer, counted() as sent:
            call()
        assert outer.bytes == sent.bytes
        found[name] = dict(sent.bytes), sum(sent.calls.values())
    call()
    assert dict(sent.bytes) == found[name][0], "nothing is counted outside"
    return found


def test_each_kind(pool: Pool) -> None:
    ranks = tuple(range(N))
    for rank, found in enumerate(pool.run(each_kind, N)):
        after, others = (rank + 1) % N, [other for other in ranks if other != rank]
        root = {other: SIZE for other in others} if rank == 1 else {}
        leaf = {} if rank == 1 else {1: SIZE}
        expected: dict[str, tuple[str, dict[int, int]]] = {
            "all_gather": ("all-gather", {after: 2 * SIZE}),
            "all_gather_single": ("all-gather", {after: 2 * SIZE}),
            "all_gather_into_tensor": ("all-gather", {after: 2 * SIZE}),
            "all_reduce": ("all-reduce", {after: 2 * SIZE * 2 // 3}),
            "reduce_scatter": ("reduce-scatter", {after: 2 * SIZE}),
            "reduce_scatter_single": ("reduce-scatter", {after: 2 * SIZE}),
            "all_to_all_single": ("all-to-all", {other: SIZE for other in others}),
            "uneven": ("all-to-all", {other: SIZE * (1, 0, 2)[other] for other in others if other != 1}),
            "broadcast": ("broadcast", root),
            "reduce": ("reduce", leaf),
            "gather": ("gather", leaf),
            "scatter": ("scatter", root),
            "send": ("send", {2: SIZE} if rank == 0 else {}),
            "batch": ("send", {after: SIZE}),
        }
        expected |= {
            "functional all_gather": expected["all_gather"],
            "functional all_reduce": expected["all_reduce"],
            "functional reduce_scatter": expected["reduce_scatter"],
            "functional all_to_all": expected["all_to_all_single"],
            "functional broadcast": expected["broadcast"],
        }
        assert found.keys() == expected.keys()
        for name, (kind, sizes) in expected.items():
            sent, calls = found[name]
            assert sent == {Sending(kind, ranks, to): size for to, size in sizes.items()}, name
            assert calls == (1 if name != "send" or rank == 0 else 0), name


def sharded_step(rank: int, groups: Groups, argument: Any) -> Any:
    """A step under FSDP2, then a DTensor resharded; counted by us and, in calls, by torch."""
    assert groups.side is not None
    mesh = DeviceMesh.from_group(groups.side, "cpu")
    module = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False))
    for part in module:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    with counted() as sent, CommDebugMode() as theirs:
        module(torch.ones(2, 4)).sum().backward()
    whole = torch.arange(16.0).view(4, 4)
    with counted() as moved, CommDebugMode() as their_moves:
        tensor = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        assert isinstance(tensor, DTensor)
        tensor.redistribute(mesh, [Replicate()]).to_local().sum()
        tensor.redistribute(mesh, [Shard(1)]).to_local().sum()
    counts = theirs.get_total_counts(), their_moves.get_total_counts()
    return sent.by_kind(), sum(sent.calls.values()), moved.by_kind(), sum(moved.calls.values()), counts


def test_what_torch_itself_sends(pool: Pool) -> None:
    for sent, calls, moved, moves, counts in pool.run(sharded_step, 2):
        weights = 4 * (4 * 8 + 8 * 2)
        # Gathered for the forward pass and again for the backward pass; half of the weights is elsewhere.
        assert sent == {"all-gather": 2 * weights // 2, "reduce-scatter": weights // 2}
        assert (calls, moves) == counts
        # On CPU torch gathers, to cut along another dim, where it exchanges on CUDA.
        assert moved == {"all-gather": 2 * 32}


def other_thread(rank: int, groups: Groups, argument: Any) -> dict[str, int]:
    with counted() as sent:
        thread = threading.Thread(target=lambda: dist.all_reduce(torch.ones(6), group=groups.side))
        thread.start()
        thread.join()
    return sent.by_kind()


def test_calls_of_other_threads_are_seen(pool: Pool) -> None:
    assert pool.run(other_thread, 2) == [{"all-reduce": SIZE}] * 2


def test_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    sent = Counted()
    sent.bytes.update({Sending("send", (0, 1, 2), 0): 5, Sending("send", (1, 2), 2): 7})
    sent.bytes[Sending("all-gather", (1, 2), 2)] = 11
    assert (sent.total(), sent.total("send"), sent.total(group=(1, 2))) == (23, 12, 18)
    assert sent.leaving(2) == 18
    assert sent.leaving(1) == 23
