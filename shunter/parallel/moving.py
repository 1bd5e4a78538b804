"""Messages that carry out conversions: slices, and parts that are added up, counted as they are handed over.

All goes through all-to-all with parts of any length. Parts are added by their owner in the order of the
ranks, so a result does not depend on how a backend adds. On NCCL an all-reduce is NCCL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.placement import Ranges, Reduction, extent, pieces
from shunter.layout.slices import Slice, Spread, filler, slices
from shunter.parallel.mesh import Peers


@dataclass
class Moved:
    """What one rank has handed to others. The sum over ranks is what the byte table counts."""

    bytes: int = 0
    messages: int = 0


def move_slices(
    x: Tensor,
    source: Spread,
    target: Spread,
    peers: Peers,
    names: tuple[int, ...],
    dtype: torch.dtype,
    moved: Moved | None,
) -> Tensor:
    """Ranges go from holders to those who need them. names: of the peers, as devices of the spreads.

    Where nothing crosses, nobody calls the backend, and the result may share memory with `x`.
    """
    here, plan = names[peers.index], slices(source, target)
    mine, wanted = source.held.get(here), target.held.get(here)
    into = [it for it in plan if it.receiver == here and it.sender != here]
    keep = [it for it in plan if it.receiver == it.sender == here]
    got = _across(x, mine, [(it.sender, it.receiver, it) for it in plan], peers, names, dtype, moved)
    if wanted is None:
        return x.new_empty(0, dtype=dtype)
    if len(keep) == 1 and not into and keep[0].ranges == wanted and mine is not None:
        return x if mine == wanted else x[inside(wanted, mine)].contiguous()
    found = neutral(extent(wanted), filler(source, target, here), x, dtype)
    for it in keep:
        found[inside(it.ranges, wanted)] = x[inside(it.ranges, mine)]
    for it in into:
        found[inside(it.ranges, wanted)] = got[it.sender].view(extent(it.ranges))
    return found


def move_back(
    grad: Tensor,
    source: Spread,
    target: Spread,
    peers: Peers,
    names: tuple[int, ...],
    dtype: torch.dtype,
    moved: Moved | None,
) -> Tensor:
    """The gradient of `move_slices`: each slice goes back to its sender, who adds what comes."""
    here, plan = names[peers.index], slices(source, target)
    mine, wanted = source.held.get(here), target.held.get(here)
    got = _across(grad, wanted, [(it.receiver, it.sender, it) for it in plan], peers, names, dtype, moved)
    if mine is None:
        return grad.new_empty(0, dtype=dtype)
    found = grad.new_zeros(extent(mine), dtype=dtype)
    for it in plan:
        if it.sender == here:
            whole = it.receiver == here
            part = grad[inside(it.ranges, wanted)] if whole else got[it.receiver].view(extent(it.ranges))
            found[inside(it.ranges, mine)] += part
    return found


def _across(
    x: Tensor,
    own: Ranges | None,
    ways: Sequence[tuple[int, int, Slice]],
    peers: Peers,
    names: tuple[int, ...],
    dtype: torch.dtype,
    moved: Moved | None,
) -> dict[int, Tensor]:
    """What comes here, flat, by the name of whom it comes from.

    ways: (from, to, slice), of all ranks. own: the ranges that x is.
    """
    here, number = names[peers.index], {name: index for index, name in enumerate(names)}
    if all(one == other for one, other, _ in ways):
        return {}
    sent = {
        number[to]: x[inside(it.ranges, own)] for of, to, it in ways if of == here != to and own is not None
    }
    sizes = {number[of]: it.elements for of, to, it in ways if to == here != of}
    got = exchange(sent, sizes, x, dtype, peers, moved)
    return {names[index]: part for index, part in got.items()}


def inside(ranges: Ranges, of: Ranges | None) -> tuple[slice, ...]:
    """Ranges of the whole as slices of a local tensor."""
    assert of is not None
    return tuple(slice(a - begin, b - begin) for (a, b), (begin, _) in zip(ranges, of, strict=True))


def neutral(shape: Sequence[int], op: Reduction | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that changes nothing when it is added (or maximised over); None: any, to be filled."""
    found = like.new_empty(tuple(shape), dtype=dtype)
    if op is None:
        return found
    if op == "sum":
        return found.zero_()
    if dtype.is_floating_point:
        return found.fill_(float("-inf") if op == "max" else float("inf"))
    info = torch.iinfo(dtype)
    return found.fill_(info.min if op == "max" else info.max)


def exchange(
    sent: dict[int, Tensor],
    sizes: dict[int, int],
    like: Tensor,
    dtype: torch.dtype,
    peers: Peers,
    moved: Moved | None,
) -> dict[int, Tensor]:
    """Hand tensors to peers by their places, and take flat ones of known sizes. Collective."""
    if peers.group is None:
        return {}
    # A process group has its ranks in ascending order, whatever order they were given in.
    order = sorted(range(peers.size), key=peers.ranks.__getitem__)
    parts = [sent[index].reshape(-1) if index in sent else None for index in order]
    flat = [part for part in parts if part is not None]
    outgoing = torch.cat(flat) if flat else like.new_empty(0, dtype=dtype)
    incoming = like.new_empty(sum(sizes.values()), dtype=dtype)
    out_sizes = [0 if part is None else part.numel() for part in parts]
    in_sizes = [sizes.get(index, 0) for index in order]
    dist.all_to_all_single(incoming, outgoing, in_sizes, out_sizes, group=peers.group)
    if moved is not None:
        moved.bytes += outgoing.numel() * outgoing.element_size()
        moved.messages += len(flat)
    return dict(zip(order, incoming.split(in_sizes), strict=True))


def reduce_scatter(x: Tensor, op: Reduction, dim: int, peers: Peers, moved: Moved | None) -> Tensor:
    """Each peer gets its part along a dim, added in the order of the peers."""
    if peers.group is None:
        return x
    bounds = pieces(x.shape[dim], peers.size)
    parts = [x.narrow(dim, begin, end - begin) for begin, end in bounds]
    own = parts[peers.index]
    others = {index: part for index, part in enumerate(parts) if index != peers.index}
    got = exchange(others, dict.fromkeys(others, own.numel()), x, x.dtype, peers, moved)
    terms = [own if index == peers.index else got[index].view(own.shape) for index in range(peers.size)]
    return _add(terms, op)


def all_reduce(x: Tensor, op: Reduction, peers: Peers, moved: Moved | None) -> Tensor:
    """The reduction on all peers: each reduces a part and hands it to the others."""
    if peers.group is None:
        return x
    if dist.get_backend(peers.group) == "nccl":
        kinds = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
        found = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, kinds[op], group=peers.group)
        if moved is not None:  # of a ring; NCCL may take another way
            bounds = pieces(x.numel(), peers.size)
            own = bounds[peers.index][1] - bounds[peers.index][0]
            moved.bytes += (x.numel() + (peers.size - 2) * own) * x.element_size()
            moved.messages += 2 * (peers.size - 1)
        return found
    flat = x.reshape(-1)
    bounds = pieces(flat.numel(), peers.size)
    mine = reduce_scatter(flat, op, 0, peers, moved)
    sizes = {index: end - begin for index, (begin, end) in enumerate(bounds) if index != peers.index}
    got = exchange(dict.fromkeys(sizes, mine), sizes, x, x.dtype, peers, moved)
    return torch.cat([mine if index == peers.index else got[index] for index in range(peers.size)]).view(
        x.shape
    )


def _add(terms: Sequence[Tensor], op: Reduction) -> Tensor:
    found = terms[0].clone()
    for term in terms[1:]:
        if op == "sum":
            found += term
        else:
            (torch.maximum if op == "max" else torch.minimum)(found, term, out=found)
    return found
