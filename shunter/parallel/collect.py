"""Tensors that stand on several ranks, brought together on rank 0."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.parallel.transport import Groups
from shunter.parallel.tree import decode, encode, spec_of


@dataclass(frozen=True)
class Piece:
    """Rows `begin` to `end` of a tensor that has `total`; the ranks have one after the other."""

    begin: int
    end: int
    total: int


@torch.no_grad()
def collect(
    tensors: Mapping[str, Tensor],
    groups: Groups,
    rank: int,
    device: torch.device,
    pieces: Collection[str] = (),
) -> dict[str, Tensor] | None:
    """All ranks' tensors by name, on the CPU of rank 0; None on other ranks. Every rank calls it.

    A name that several ranks have is the lowest rank's, since they hold the same; of a name among `pieces`
    each has some rows, which are put together in order of ranks. Ranks come one after the other, so that
    rank 0 needs room for the whole, once.
    """
    if rank:
        tree = {name: tensor.detach() for name, tensor in tensors.items()}
        spec = spec_of(tree)
        data = torch.frombuffer(bytearray(encode(spec)), dtype=torch.uint8).to(device)
        dist.send(torch.tensor([len(data)], device=device), groups.ranks[0], group=groups.down)
        dist.send(data, groups.ranks[0], group=groups.down)
        for leaf in spec:
            dist.send(tree[leaf.name].to(device).contiguous(), groups.ranks[0], group=groups.down)
        return None
    found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    rows = {name: [found[name]] for name in pieces}
    for peer in range(1, len(groups.ranks)):
        size = torch.zeros(1, dtype=torch.int64, device=device)
        dist.recv(size, groups.ranks[peer], group=groups.down)
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
        dist.recv(data, groups.ranks[peer], group=groups.down)
        for leaf in decode(bytes(data.cpu().numpy())):
            tensor = leaf.empty(device)
            dist.recv(tensor, groups.ranks[peer], group=groups.down)
            if leaf.name in rows:
                rows[leaf.name].append(tensor.cpu())
            else:
                found.setdefault(leaf.name, tensor.cpu())
    return found | {name: torch.cat(parts) for name, parts in rows.items()}
