"""Tensors of which each rank holds a part, brought together on one rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.piece import Piece
from shunter.parallel.mesh import Peers
from shunter.parallel.told import told_by_all


@torch.no_grad()
def collect(
    tensors: Mapping[str, Tensor], pieces: Mapping[str, Piece], peers: Peers, device: torch.device
) -> dict[str, Tensor] | None:
    """The whole tensors by name, on the CPU of the first of the peers; None on the others.

    tensors, pieces: the parts that this rank hands in; what several hold one of them hands in, or all: they
    are the same. Ranks come one after the other: the first needs room for the whole and one part more.
    Raises ValueError when parts are missing.
    """
    mine = {name: (tensor.dtype, pieces[name]) for name, tensor in tensors.items()}
    facts = [[name, _name(dtype), piece.shape, piece.ranges] for name, (dtype, piece) in mine.items()]
    told = told_by_all(facts, peers, device)
    if peers.index:
        for tensor in tensors.values():
            if tensor.numel():
                dist.send(tensor.detach().to(device).contiguous(), peers.ranks[0], group=peers.group)
        return None
    found: dict[str, Tensor] = {}
    missing: dict[str, Tensor] = {}
    for rank, facts in zip(peers.ranks, told, strict=True):
        for name, dtype, shape, ranges in facts:
            piece = Piece(tuple(shape), tuple(tuple((b, e) for b, e in held) for held in ranges))
            whole = found.get(name)
            if whole is None:
                whole = found[name] = torch.empty(piece.shape, dtype=getattr(torch, dtype))
                missing[name] = torch.ones(piece.shape, dtype=torch.bool)
            if not piece.numel:
                continue
            if rank == peers.ranks[0]:
                part = tensors[name].detach().cpu()
            else:
                buffer = torch.empty(piece.local_shape, dtype=whole.dtype, device=device)
                dist.recv(buffer, rank, group=peers.group)
                part = buffer.cpu()
            place(part, piece, whole)
            place(torch.zeros(piece.local_shape, dtype=torch.bool), piece, missing[name])
    if lacking := [name for name, mask in missing.items() if bool(mask.any())]:
        raise ValueError(f"no rank has all of {lacking[0]}")
    return found


def place(part: Tensor, piece: Piece, whole: Tensor) -> None:
    """Put a part where it belongs in the whole."""
    for box in piece.boxes():
        whole[box.slices(box.whole)] = part[box.slices(box.part)]


def cut(whole: Tensor, piece: Piece) -> Tensor:
    """A copy of a part of the whole."""
    part = whole.new_empty(piece.local_shape)
    take(whole, piece, part)
    return part


def take(whole: Tensor, piece: Piece, part: Tensor) -> None:
    """Put into a part what belongs there of the whole."""
    for box in piece.boxes():
        part[box.slices(box.part)] = whole[box.slices(box.whole)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
