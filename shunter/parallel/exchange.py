"""Rows that change ranks, with as many of them to each rank as there happen to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.parallel.mesh import Peers


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], peers: Peers) -> Tensor:
    """[sum(receive), ...]: what each peer sends here, one after the other.

    rows [sum(send), ...]: the first send[0] go to the first peer, and so on; a number may be 0. Every peer
    calls it at the same point. Alone it is `rows` itself.
    """
    if peers.size == 1:
        return rows
    found = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), list(receive), list(send), group=peers.group)
    return found


def gather_rows(rows: Tensor, sizes: Sequence[int], peers: Peers) -> Tensor:
    """[sum(sizes), ...]: every peer's rows; sizes[i] are peer i's."""
    if peers.size == 1:
        return rows
    return exchange(torch.cat([rows] * peers.size), [len(rows)] * peers.size, sizes, peers)


def reduce_rows(rows: Tensor, sizes: Sequence[int], peers: Peers) -> Tensor:
    """[sizes[own], ...]: the sum over peers of their part for this rank, always in the order of ranks.

    rows [sum(sizes), ...]: sizes[i] are for peer i. The adjoint of `gather_rows`. As many bytes as a
    reduce-scatter, which gloo does not have for parts of unequal size.
    """
    if peers.size == 1:
        return rows
    mine = sizes[peers.index]
    return exchange(rows, sizes, [mine] * peers.size, peers).view(peers.size, mine, *rows.shape[1:]).sum(0)
