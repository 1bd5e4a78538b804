"""Conversions between layouts, carried out on local tensors (arXiv 2110.15032, section 3.2).

`redistribute` works on the ranks of a hierarchy of axes, `transfer` between any two sets of ranks. What goes where
is computed beforehand (`shunter.layout.conversion`); the bytes that are handed over are those of its count. The
gradient takes the way back between the dual layouts: what was copied comes back as parts of a sum.

All goes through all-to-all with parts of any length: parts are added by their owner, in the order of the ranks, so
that a result does not depend on how a backend adds. On NCCL an all-reduce is NCCL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.conversion import Step, route, steps
from shunter.layout.placement import (
    Partial,
    Placements,
    Ranges,
    Reduction,
    Split,
    dual,
    extent,
    held,
    local_shape,
    pieces,
    places,
    told,
)
from shunter.layout.slices import Slice, Spread, slices
from shunter.parallel.mesh import Mesh, Peers, ProcessGroups


@dataclass
class Moved:
    """What one rank has handed to others, in bytes. The sum over ranks is what the table counts."""

    bytes: int = 0
    messages: int = 0


@dataclass(frozen=True)
class Axes:
    """The axes that tensors are placed along, as one rank sees them.

    each: the peers along each axis. whole: all ranks of these axes, row-major, the last axis fastest.
    """

    each: tuple[Peers, ...]
    whole: Peers

    @property
    def hierarchy(self) -> tuple[int, ...]:
        return tuple(peers.size for peers in self.each)

    @property
    def place(self) -> tuple[int, ...]:
        """This rank's coordinates."""
        return tuple(peers.index for peers in self.each)

    @classmethod
    def of(cls, mesh: Mesh, *names: str) -> Axes:
        """Axes of a mesh, in the grid's order; several of them have to be among its combined ones."""
        return cls(tuple(mesh.peers(name) for name in names), mesh.peers(*names))

    @classmethod
    def over(
        cls, groups: ProcessGroups, ranks: Sequence[int], hierarchy: Sequence[int], rank: int
    ) -> Axes | None:
        """Axes over any ranks; None on a rank that is not among them. Every rank of the world calls it."""
        ranks, hierarchy = tuple(ranks), tuple(hierarchy)
        coordinates = places(hierarchy)
        found: dict[int, Peers] = {}
        for axis in range(len(hierarchy)):
            rows: dict[tuple[int, ...], list[int]] = {}
            for each, place in zip(ranks, coordinates, strict=True):
                rows.setdefault((*place[:axis], *place[axis + 1 :]), []).append(each)
            for row in rows.values():
                group = groups.get(row)
                if rank in row:
                    found[axis] = Peers(group, tuple(row), row.index(rank))
        group = groups.get(ranks)
        if rank not in ranks:
            return None
        return cls(tuple(found[axis] for axis in range(len(hierarchy))), Peers(group, ranks, ranks.index(rank)))


def redistribute(
    x: Tensor,
    shape: Sequence[int],
    source: Placements,
    target: Placements,
    axes: Axes,
    *,
    gradient: tuple[Placements, Placements] | None = None,
    moved: Moved | None = None,
) -> Tensor:
    """This rank's part of a tensor of `shape`, converted from one layout to another.

    gradient: how the result's gradient arrives and how that of `x` has to leave; by default the duals of `target`
        and `source`. Where all ranks compute the same from a copy, its gradient arrives copied: give (B, ...).
    moved: counts what this rank hands over, backward included.
    Raises ShunterError for a local tensor that is not what the layout gives this rank.
    """
    shape = tuple(shape)
    expected = local_shape(shape, source, axes.hierarchy, axes.place)
    if tuple(x.shape) != expected:
        raise ShunterError(
            f"rank {axes.whole.ranks[axes.whole.index]} holds {list(x.shape)} of a tensor of {list(shape)}, but "
            f"{told(source)} over {axes.hierarchy} gives it {list(expected)}"
        )
    path = steps(shape, source, target, axes.hierarchy)
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _walk(x, shape, path, axes, moved)
    arrives, leaves = gradient or (dual(target), dual(source))
    back = steps(shape, arrives, leaves, axes.hierarchy)
    found: Tensor = _Redistribute.apply(x, shape, path, back, axes, moved)
    return found


class _Redistribute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: tuple[int, ...], path: Any, back: Any, axes: Axes, moved: Moved | None
    ) -> Tensor:
        ctx.kept = shape, back, axes, moved
        found = _walk(x, shape, path, axes, moved)
        return found.view_as(found) if found is x else found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, back, axes, moved = ctx.kept
        return _walk(grad, shape, back, axes, moved), None, None, None, None, None


def _walk(
    x: Tensor, shape: tuple[int, ...], path: Sequence[Step], axes: Axes, moved: Moved | None
) -> Tensor:
    for step in path:
        if step.kind == "slices":
            devices = tuple(range(axes.whole.size))
            source = Spread(shape, devices, axes.hierarchy, step.before)
            target = Spread(shape, devices, axes.hierarchy, step.after)
            x = _slice(x, source, target, axes.whole, x.dtype, moved)
        else:
            assert step.axis is not None
            peers = axes.each[step.axis]
            if step.kind == "embed":
                x = _embed(x, shape, step, axes)
            elif step.kind == "all-reduce":
                x = _all_reduce(x, _op(step.before, step.axis), peers, moved)
            else:
                after = step.after[step.axis]
                assert isinstance(after, Split)
                x = _reduce_scatter(x, _op(step.before, step.axis), after.dim, peers, moved)
    return x


def _op(placements: Placements, axis: int) -> Reduction:
    placement = placements[axis]
    assert isinstance(placement, Partial)
    return placement.op


def transfer(
    x: Tensor | None,
    dtype: torch.dtype,
    source: Spread,
    target: Spread,
    all: Peers,
    axes: Axes | None = None,
    *,
    device: torch.device | None = None,
    moved: Moved | None = None,
) -> Tensor:
    """A tensor from one set of ranks to another; the sets may be disjoint or share ranks.

    x: this rank's part, None on one that has none. all: every rank of both, whose global numbers the spreads use.
    axes: those of the source on its ranks, needed where parts have to be added first; in backward those of the
        target's gradient are needed likewise, so only `all` adds there: see below.
    Returns this rank's part of the result, and an empty tensor on ranks that get none. All ranks of `all` call it,
    and all take part in backward: a rank whose result is empty calls backward on that (its sum is 0).
    Gradients of copies are added by their receivers: each hands its own over, (p2) T bytes for p2 copies.
    """
    here = all.ranks[all.index]
    device = x.device if x is not None else device or torch.device("cpu")
    if x is None:
        x = torch.empty(0, dtype=dtype, device=device)
        if dtype.is_floating_point and torch.is_grad_enabled():
            x.requires_grad_()  # so that backward reaches this rank too
    elif here not in source.devices:
        raise ShunterError(f"rank {here} gives a part, but is not among {list(source.devices)}")
    path = route(source, target)
    for step in path.steps:
        if here in source.devices:
            if axes is None:
                raise ShunterError(f"{told(source.placements)} has to be added up first", mend="Give its axes.")
            x = redistribute(x, source.shape, step.before, step.after, axes, moved=moved)
    if path.middle == target:
        return x
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _slice(x, path.middle, target, all, dtype, moved)
    found: Tensor = _Transfer.apply(x, path.middle, target, all, dtype, moved)
    return found


class _Transfer(torch.autograd.Function):
    """Slices forth; back, each receiver's gradients go to the sender, who adds them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Spread, target: Spread, all: Peers, dtype: torch.dtype, moved: Moved | None
    ) -> Tensor:
        ctx.kept = source, target, all, dtype, moved, x.shape
        return _slice(x, source, target, all, dtype, moved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, target, all, dtype, moved, shape = ctx.kept
        found = _slice_back(grad.contiguous(), source, target, all, dtype, moved)
        return found.view(shape), None, None, None, None, None


# What carries it out


def _slice(
    x: Tensor, source: Spread, target: Spread, all: Peers, dtype: torch.dtype, moved: Moved | None
) -> Tensor:
    """Ranges from holders to those who need them. Devices of spreads: global ranks, or places in `all`."""
    here, number = _here(source, target, all)
    plan = slices(source, target)
    mine = source.held.get(here)
    out = [it for it in plan if it.sender == here and it.receiver != here]
    into = [it for it in plan if it.receiver == here and it.sender != here]
    keep = [it for it in plan if it.receiver == it.sender == here]
    wanted = target.held.get(here)
    if not any(it.sender != it.receiver for it in plan) and wanted is not None and mine == wanted and keep:
        return x
    sent = {number[it.receiver]: x[_inside(it.ranges, mine)] for it in out if mine is not None}
    got = _exchange(sent, {number[it.sender]: it.elements for it in into}, x, dtype, all, moved)
    if wanted is None:
        return x.new_empty(0, dtype=dtype)
    if len(keep) == 1 and not into and keep[0].ranges == wanted and mine is not None:
        return x[_inside(wanted, mine)].contiguous()
    found = _neutral(extent(wanted), _reduction(source, target), x, dtype, filled=bool(keep or into))
    for it in keep:
        assert mine is not None
        found[_inside(it.ranges, wanted)] = x[_inside(it.ranges, mine)]
    for it in into:
        found[_inside(it.ranges, wanted)] = got[number[it.sender]].view(extent(it.ranges))
    return found


def _slice_back(
    grad: Tensor, source: Spread, target: Spread, all: Peers, dtype: torch.dtype, moved: Moved | None
) -> Tensor:
    here, number = _here(source, target, all)
    plan = slices(source, target)
    mine, wanted = source.held.get(here), target.held.get(here)
    out = [it for it in plan if it.receiver == here and it.sender != here]
    into = [it for it in plan if it.sender == here and it.receiver != here]
    sent = {number[it.sender]: grad[_inside(it.ranges, wanted)] for it in out if wanted is not None}
    got = _exchange(sent, {number[it.receiver]: it.elements for it in into}, grad, dtype, all, moved)
    if mine is None:
        return grad.new_empty(0, dtype=dtype)
    found = grad.new_zeros(extent(mine), dtype=dtype)
    for it in plan:
        if it.sender != here:
            continue
        part = (
            grad[_inside(it.ranges, wanted)]
            if it.receiver == here and wanted is not None
            else got[number[it.receiver]].view(extent(it.ranges))
        )
        found[_inside(it.ranges, mine)] += part
    return found


def _here(source: Spread, target: Spread, all: Peers) -> tuple[int, dict[int, int]]:
    """This rank's name among the spreads' devices, and the place in `all` of each device."""
    if set(source.devices) | set(target.devices) <= set(all.ranks):
        names = all.ranks
        if set(names) != set(range(all.size)) or names == tuple(range(all.size)):
            return names[all.index], {name: index for index, name in enumerate(names)}
    return all.index, {index: index for index in range(all.size)}


def _inside(ranges: Ranges, of: Ranges | None) -> tuple[slice, ...]:
    """Ranges of the whole as slices of a local tensor."""
    assert of is not None
    return tuple(slice(a - begin, b - begin) for (a, b), (begin, _) in zip(ranges, of, strict=True))


def _reduction(source: Spread, target: Spread) -> Reduction | None:
    ops = {it.op for it in target.placements if isinstance(it, Partial)}
    return next(iter(ops)) if ops else None


def _neutral(
    shape: Sequence[int], op: Reduction | None, like: Tensor, dtype: torch.dtype, filled: bool = False
) -> Tensor:
    """A tensor that changes nothing when it is added (or maximised over); any, where it will be filled."""
    found = like.new_empty(tuple(shape), dtype=dtype)
    if filled or op is None:
        return found
    if op == "sum":
        return found.zero_()
    if dtype.is_floating_point:
        return found.fill_(float("-inf") if op == "max" else float("inf"))
    info = torch.iinfo(dtype)
    return found.fill_(info.min if op == "max" else info.max)


def _exchange(
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
    parts = [sent[index].reshape(-1) if index in sent else None for index in range(peers.size)]
    flat = [part for part in parts if part is not None]
    outgoing = torch.cat(flat) if flat else like.new_empty(0, dtype=dtype)
    incoming = like.new_empty(sum(sizes.values()), dtype=dtype)
    out_sizes = [0 if part is None else part.numel() for part in parts]
    in_sizes = [sizes.get(index, 0) for index in range(peers.size)]
    dist.all_to_all_single(incoming, outgoing, in_sizes, out_sizes, group=peers.group)
    if moved is not None:
        moved.bytes += outgoing.numel() * outgoing.element_size()
        moved.messages += len(flat)
    return dict(enumerate(incoming.split(in_sizes)))


def _embed(x: Tensor, shape: tuple[int, ...], step: Step, axes: Axes) -> Tensor:
    """A part among neutral elements; of copies, the first keeps its own."""
    assert step.axis is not None
    before, after = (held(shape, it, axes.hierarchy, axes.place) for it in (step.before, step.after))
    op = _op(step.after, step.axis)
    if not isinstance(step.before[step.axis], Split):
        return x if axes.place[step.axis] == 0 else _neutral(extent(after), op, x, x.dtype)
    found = _neutral(extent(after), op, x, x.dtype)
    found[_inside(before, after)] = x
    return found


def _reduce_scatter(x: Tensor, op: Reduction, dim: int, peers: Peers, moved: Moved | None) -> Tensor:
    """Each peer gets its part along a dim, added in the order of the peers."""
    if peers.group is None:
        return x
    bounds = pieces(x.shape[dim], peers.size)
    parts = [x.narrow(dim, begin, end - begin) for begin, end in bounds]
    own = parts[peers.index]
    others = {index: part for index, part in enumerate(parts) if index != peers.index}
    got = _exchange(others, dict.fromkeys(others, own.numel()), x, x.dtype, peers, moved)
    terms = [own if index == peers.index else got[index].view(own.shape) for index in range(peers.size)]
    return _add(terms, op)


def _all_reduce(x: Tensor, op: Reduction, peers: Peers, moved: Moved | None) -> Tensor:
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
    mine = _reduce_scatter(flat, op, 0, peers, moved)
    sizes = {index: end - begin for index, (begin, end) in enumerate(bounds) if index != peers.index}
    got = _exchange(dict.fromkeys(sizes, mine), sizes, x, x.dtype, peers, moved)
    return torch.cat([mine if index == peers.index else got[index] for index in range(peers.size)]).view(x.shape)


def _add(terms: Sequence[Tensor], op: Reduction) -> Tensor:
    found = terms[0].clone()
    for term in terms[1:]:
        if op == "sum":
            found += term
        else:
            (torch.maximum if op == "max" else torch.minimum)(found, term, out=found)
    return found


__all__ = ["Axes", "Moved", "Slice", "redistribute", "transfer"]
_ = prod
