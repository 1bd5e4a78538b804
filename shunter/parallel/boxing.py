"""Conversions between layouts, carried out on local tensors (arXiv 2110.15032, section 3.2).

`redistribute` works on the ranks of a hierarchy of axes, `transfer` between any two sets of ranks. What goes
where is computed beforehand (`shunter.layout.conversion`); the bytes that are handed over are those of its
count. The gradient takes the way back between the dual layouts: what was copied comes back as parts of a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.conversion import Step, route, steps
from shunter.layout.placement import (
    Partial,
    Placements,
    Reduction,
    Split,
    dual,
    extent,
    held,
    local_shape,
    places,
    told,
)
from shunter.layout.slices import Spread
from shunter.parallel.mesh import Mesh, Peers, ProcessGroups
from shunter.parallel.moving import (
    Moved,
    all_reduce,
    inside,
    move_back,
    move_slices,
    neutral,
    reduce_scatter,
)


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
        return cls(
            tuple(found[axis] for axis in range(len(hierarchy))), Peers(group, ranks, ranks.index(rank))
        )


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

    gradient: how the result's gradient arrives and how that of `x` has to leave; by default the duals of
        `target` and `source`. Where all ranks compute the same from a copy, its gradient arrives copied: give
        (B, ...).
    moved: counts what this rank hands over, backward included.
    The result may share memory with `x`. All ranks of `axes` call it in the same order.
    Raises ShunterError for a local tensor that is not what the layout gives this rank.
    """
    shape = tuple(shape)
    expected = local_shape(shape, source, axes.hierarchy, axes.place)
    if tuple(x.shape) != expected:
        raise ShunterError(
            f"rank {axes.whole.ranks[axes.whole.index]} holds {list(x.shape)} of a tensor of {list(shape)}, "
            f"but {told(source)} over {axes.hierarchy} gives it {list(expected)}"
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


def _walk(x: Tensor, shape: tuple[int, ...], path: Sequence[Step], axes: Axes, moved: Moved | None) -> Tensor:
    for step in path:
        if step.kind == "slices":
            devices = tuple(range(axes.whole.size))
            source = Spread(shape, devices, axes.hierarchy, step.before)
            target = Spread(shape, devices, axes.hierarchy, step.after)
            x = move_slices(x, source, target, axes.whole, devices, x.dtype, moved)
        else:
            assert step.axis is not None
            peers = axes.each[step.axis]
            if step.kind == "embed":
                x = _embed(x, shape, step, axes)
            elif step.kind == "all-reduce":
                x = all_reduce(x, _op(step.before, step.axis), peers, moved)
            else:
                after = step.after[step.axis]
                assert isinstance(after, Split)
                x = reduce_scatter(x, _op(step.before, step.axis), after.dim, peers, moved)
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
    everyone: Peers,
    axes: Axes | None = None,
    *,
    device: torch.device | None = None,
    moved: Moved | None = None,
) -> Tensor:
    """A tensor from one set of ranks to another; the sets may be disjoint or share ranks.

    x: this rank's part, None on one that has none. everyone: the ranks of both sets; the spreads name them by
        their global numbers. axes: those of the source on its ranks, needed where parts have to be added
        first.
    device: of the result on a rank that gives nothing; by default the CPU.
    Returns this rank's part of the result, and an empty tensor on ranks that get none. All of `everyone` call
    it, and all take part in backward: one whose result is empty adds its sum, which is 0, to what it calls
    backward on.
    """
    here = everyone.ranks[everyone.index]
    if (x is None) == (here in source.devices):
        there = "holds none" if x is None else "gives a part"
        raise ShunterError(f"rank {here} {there}, but the source lies on {list(source.devices)}")
    if x is None:
        x = torch.empty(0, dtype=dtype, device=device or torch.device("cpu"))
        # So that backward reaches this rank too.
        x.requires_grad_(dtype.is_floating_point and torch.is_grad_enabled())
    path = route(source, target)
    if here in source.devices:
        for step in path.steps:
            if axes is None:
                raise ShunterError(
                    f"{told(source.placements)} has to be added up first", mend="Give its axes."
                )
            x = redistribute(x, source.shape, step.before, step.after, axes, moved=moved)
    if path.middle == target:
        return x
    if not torch.is_grad_enabled() or not x.requires_grad:
        return move_slices(x, path.middle, target, everyone, everyone.ranks, dtype, moved)
    found: Tensor = _Transfer.apply(x, path.middle, target, everyone, moved)
    return found


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Spread, target: Spread, everyone: Peers, moved: Moved | None
    ) -> Tensor:
        ctx.kept = source, target, everyone, moved, x.shape
        found = move_slices(x, source, target, everyone, everyone.ranks, x.dtype, moved)
        return found.view_as(found) if found is x else found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, target, everyone, moved, shape = ctx.kept
        found = move_back(grad, source, target, everyone, everyone.ranks, grad.dtype, moved)
        return found.view(shape), None, None, None, None


def _embed(x: Tensor, shape: tuple[int, ...], step: Step, axes: Axes) -> Tensor:
    """A part among neutral elements; of copies, the first keeps its own."""
    assert step.axis is not None
    before, after = (held(shape, it, axes.hierarchy, axes.place) for it in (step.before, step.after))
    op = _op(step.after, step.axis)
    if not isinstance(step.before[step.axis], Split):
        return x if axes.place[step.axis] == 0 else neutral(extent(after), op, x, x.dtype)
    found = neutral(extent(after), op, x, x.dtype)
    found[inside(before, after)] = x
    return found
