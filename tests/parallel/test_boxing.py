"""Every conversion on real ranks: values equal a full gather, and what is handed over is what the table says.

Parts are whole numbers, so that sums are exact whatever their order. Bytes are counted twice: by the package,
and by a wrapper around the backend's all-to-all. What this cannot show: NCCL, and what the backend puts on
the wire besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.conversion import moved_elements, route, table
from shunter.layout.grid import Grid
from shunter.layout.placement import (
    Broadcast,
    Partial,
    Placement,
    Placements,
    Split,
    dual,
    held,
    parse,
    places,
)
from shunter.layout.slices import Spread
from shunter.parallel.boxing import Axes, redistribute, transfer
from shunter.parallel.mesh import Mesh, Peers, ProcessGroups
from shunter.parallel.moving import Moved, inside

GROUPS = ProcessGroups(timeout=timedelta(seconds=60))
SOME: list[Placement] = [Split(0), Split(1), Broadcast(), Partial()]


@contextmanager
def counted() -> Iterator[list[int]]:
    """Elements that this rank hands to others through all-to-all."""
    real, found = dist.all_to_all_single, [0]

    def spy(output: Tensor, input: Tensor, outputs: Any, inputs: list[int], group: Any = None) -> Any:
        found[0] += sum(inputs) - inputs[dist.get_rank(group)]
        return real(output, input, outputs, inputs, group=group)

    dist.all_to_all_single = spy
    try:
        yield found
    finally:
        dist.all_to_all_single = real


def draw(
    shape: tuple[int, ...], placements: Placements, hierarchy: tuple[int, ...], place: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A whole tensor, and the part of it at a place: for partial axes one of several drawn terms."""
    partial = [axis for axis, it in enumerate(placements) if isinstance(it, Partial)]
    generator = torch.Generator().manual_seed(len(partial) + prod(shape))
    terms = torch.randint(
        -9, 9, (*(hierarchy[axis] for axis in partial), *shape), generator=generator
    ).double()
    mine = terms[tuple(place[axis] for axis in partial)]
    for number in reversed(range(len(partial))):  # from the inside
        it = placements[partial[number]]
        assert isinstance(it, Partial)
        terms = {"sum": terms.sum, "max": terms.amax, "min": terms.amin}[it.op](number)
    return terms, mine[
        inside(held(shape, placements, hierarchy, place), tuple((0, n) for n in shape))
    ].clone()


def whole_of(part: Tensor, shape: tuple[int, ...], placements: Placements, axes: Axes) -> Tensor:
    """The tensor from all ranks' parts, by nothing that is under test."""
    every: list[Any] = [None] * axes.whole.size
    if axes.whole.group is None:
        every = [part]
    else:
        dist.all_gather_object(every, part, group=axes.whole.group)
        ascending = sorted(axes.whole.ranks)  # as the group has them
        every = [every[ascending.index(name)] for name in axes.whole.ranks]

    def merge(prefix: tuple[int, ...], depth: int) -> Tensor:
        """What the ranks under a prefix of coordinates make up, the other elements left 0 (B, S) or
        neutral.
        """
        if depth == len(placements):
            index = places(axes.hierarchy).index(prefix)
            ranges = held(shape, placements, axes.hierarchy, prefix)
            found = torch.full(shape, float("nan"), dtype=part.dtype)
            found[inside(ranges, tuple((0, n) for n in shape))] = every[index]
            return found
        parts = [merge((*prefix, index), depth + 1) for index in range(axes.hierarchy[depth])]
        it = placements[depth]
        if isinstance(it, Partial):
            stacked = torch.stack(parts)
            return {"sum": stacked.sum, "max": stacked.amax, "min": stacked.amin}[it.op](0)
        found = parts[0]
        for other in parts[1:]:
            if isinstance(it, Broadcast):
                assert torch.equal(found.nan_to_num(99), other.nan_to_num(99)), "copies differ"
            found = torch.where(found.isnan(), other, found)
        return found

    return merge((), 0)


def convert(rank: int, groups: Any, cases: list[Any]) -> list[str]:
    """Runs conversions, forward and backward; returns what is wrong."""
    wrong = []
    for shape, source, target, hierarchy in cases:
        axes = Axes.over(GROUPS, range(prod(hierarchy)), hierarchy, rank)
        if axes is None:
            continue
        name = f"{shape} {source} -> {target} over {hierarchy}"
        source, target = parse(source), parse(target)
        truth, part = draw(shape, source, hierarchy, axes.place)
        moved = Moved()
        with counted() as spied:
            found = redistribute(part, shape, source, target, axes, moved=moved)
        if not torch.equal(whole_of(found, shape, target, axes), truth):
            wrong.append(f"{name}: values")
        totals = torch.tensor([moved.bytes, 8 * spied[0]])
        if axes.whole.group is not None:
            dist.all_reduce(totals, group=axes.whole.group)
        predicted = 8 * moved_elements(shape, source, target, hierarchy)
        if totals.tolist() != [predicted, predicted]:
            wrong.append(f"{name}: {totals.tolist()} bytes moved, {predicted} predicted")
        if any(isinstance(it, Partial) and it.op != "sum" for it in (*source, *target)):
            continue
        # Backward: a gradient in the dual layout comes back as the same gradient in the dual of the source.
        leaf = part.requires_grad_()
        slope, arriving = draw(shape, dual(target), hierarchy, axes.place)
        redistribute(leaf, shape, source, target, axes).backward(arriving)
        assert leaf.grad is not None
        if not torch.equal(whole_of(leaf.grad, shape, dual(source), axes), slope):
            wrong.append(f"{name}: gradient")
    return wrong


def run(pool: Any, cases: list[Any]) -> None:
    for rank, wrong in enumerate(pool.run(convert, 4, cases)):
        assert wrong == [], f"rank {rank}"


def test_one_axis(pool: Any) -> None:
    texts = ("S0", "S1", "B", "P")
    cases = [
        (shape, source, target, (size,))
        for source, target in product(texts, repeat=2)
        for size in (1, 2, 3, 4)
        for shape in ((5, 7), (3, 2), (8, 12))  # uneven, too short for all ranks, even
        if size == 4 or shape == (5, 7)
    ]
    run(pool, cases)


def test_maximum_and_minimum(pool: Any) -> None:
    pairs = [("Pmax", "B"), ("Pmin", "S1"), ("Pmax", "S0"), ("B", "Pmax"), ("S0", "Pmin"), ("Pmin", "Pmin")]
    cases = [((5, 7), a, b, (4,)) for a, b in pairs]
    cases += [
        ((5, 7), f"P,{a}", b, (2, 2)) for a in ("Pmax", "Pmin") for b in ("B,B", "S0,S1", "S0,S0", "P,B")
    ]
    cases += [
        ((5, 7), "Pmax,P", "S1,B", (2, 2)),
        ((5, 7), "S0,B", "P,Pmax", (2, 2)),
        ((5, 7), "B,B", "Pmax,P", (2, 2)),
    ]
    run(pool, cases)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_two_axes(pool: Any, every: int) -> None:
    """every: one in so many; of three, each layout still comes as source and as target."""
    texts = ["S0", "S1", "B", "P"]
    layouts = [",".join(it) for it in product(texts, repeat=2)]
    run(pool, [((6, 5), a, b, (2, 2)) for a, b in product(layouts, repeat=2)][::every])


def move(rank: int, groups: Any, cases: list[Any]) -> list[str]:
    wrong = []
    everyone = Peers(GROUPS.get(range(4)), (0, 1, 2, 3), rank)
    for shape, (ranks, hierarchy, source), (others, other_hierarchy, target), disjoint in cases:
        name = f"{shape} {source} on {ranks} -> {target} on {others}"
        a = Spread(shape, ranks, hierarchy, parse(source))
        b = Spread(shape, others, other_hierarchy, parse(target))
        here, there = (Axes.over(GROUPS, it.devices, it.hierarchy, rank) for it in (a, b))
        truth, part = None, None
        if here is not None:
            truth, part = draw(shape, a.placements, a.hierarchy, here.place)
            part.requires_grad_()
        moved = Moved()
        with counted() as spied:
            found = transfer(part, torch.float64, a, b, everyone, here, moved=moved)
        totals = torch.tensor([moved.bytes, 8 * spied[0]])
        dist.all_reduce(totals, group=everyone.group)
        predicted = 8 * route(a, b).elements
        if totals.tolist() != [predicted, predicted]:
            wrong.append(f"{name}: {totals.tolist()} bytes moved, {predicted} predicted")
        if disjoint:
            one = 8 * table(a.placements[0], b.placements[0], prod(shape), len(ranks), len(others))
            if predicted != one:
                wrong.append(f"{name}: {predicted} bytes, and the table says {one}")
        truths: list[Any] = [None] * 4
        dist.all_gather_object(truths, truth, group=everyone.group)
        truth = next(it for it in truths if it is not None)
        if there is not None and not torch.equal(whole_of(found, shape, b.placements, there), truth):
            wrong.append(f"{name}: values")
        if there is None and found.numel():
            wrong.append(f"{name}: rank {rank} got something")
        # Backward: the sum of slope * result over all ranks that hold a part.
        slopes = torch.arange(prod(shape), dtype=torch.float64).view(shape)
        if there is not None:
            _, arriving = draw(shape, dual(b.placements), b.hierarchy, there.place)
            slope, _ = draw(shape, dual(b.placements), b.hierarchy, there.place)
            slopes = slope
        else:
            arriving = torch.zeros_like(found)
        found.backward(arriving)
        every: list[Any] = [None] * 4
        dist.all_gather_object(every, slopes if there is not None else None, group=everyone.group)
        slopes = next(it for it in every if it is not None)
        if here is not None and part is not None:
            assert part.grad is not None
            if not torch.equal(whole_of(part.grad, shape, dual(a.placements), here), slopes):
                wrong.append(f"{name}: gradient")
    return wrong


def test_between_disjoint_ranks(pool: Any) -> None:
    sets = [((0,), (1, 2, 3)), ((0, 1), (2, 3)), ((1, 2, 3), (0,)), ((3, 1), (0,))]
    cases = [
        ((5, 6), (a, (len(a),), source), (b, (len(b),), target), True)
        for a, b in sets
        for source, target in product(("S0", "S1", "B", "P"), repeat=2)
    ]
    cases = [case for case in cases if not (case[1][2] == "P" and len(case[1][0]) == 1)]
    for wrong in pool.run(move, 4, cases):
        assert wrong == []


def test_between_ranks_that_overlap_and_stand_otherwise(pool: Any) -> None:
    four, pair = (0, 1, 2, 3), (1, 2)
    cases = [
        ((6, 5), (four, (4,), "S0"), (four, (2, 2), "S0,S1"), False),
        ((6, 5), (four, (2, 2), "P,S1"), (four, (4,), "S0"), False),
        ((6, 5), (pair, (2,), "S1"), (four, (4,), "B"), False),
        ((7, 5), (four, (2, 2), "S1,P"), (pair, (2,), "S0"), False),
        ((7, 5), (four, (2, 2), "B,S0"), ((2, 0, 1), (3,), "S0"), False),
        ((7, 5), (four, (4,), "S0"), ((3, 2, 1, 0), (4,), "S0"), False),
    ]
    for wrong in pool.run(move, 4, cases):
        assert wrong == []


def megatron(rank: int, groups: Any, _: Any) -> list[float]:
    """y = x W1 W2 with W1 cut by columns and W2 by rows, then an all-reduce whose gradient arrives copied."""
    axes = Axes.over(GROUPS, range(4), (4,), rank)
    assert axes is not None
    torch.manual_seed(0)
    x, w1, w2 = torch.randn(3, 6).double(), torch.randn(6, 9).double(), torch.randn(9, 5).double()
    ((begin, end),) = held((9,), parse("S0"), (4,), axes.place)
    mine = [it.clone().requires_grad_() for it in (x, w1[:, begin:end], w2[begin:end])]
    copied = redistribute(mine[0], (3, 6), parse("B"), parse("B"), axes, gradient=(parse("P"), parse("B")))
    parts = (copied @ mine[1]) @ mine[2]
    y = redistribute(parts, (3, 5), parse("P"), parse("B"), axes, gradient=(parse("B"), parse("B")))
    y.square().sum().backward()
    full = [it.clone().requires_grad_() for it in (x, w1, w2)]
    truth = (full[0] @ full[1]) @ full[2]
    truth.square().sum().backward()
    grads = [it.grad for it in full]
    expected = [grads[0], grads[1][:, begin:end], grads[2][begin:end]]  # type: ignore[index]
    return [float((a.grad - b).abs().max()) for a, b in zip(mine, expected, strict=True)]  # type: ignore[operator]


def test_a_gradient_may_arrive_copied(pool: Any) -> None:
    for gaps in pool.run(megatron, 4):
        assert max(gaps) < 1e-12


def wrong_part(rank: int, groups: Any, _: Any) -> str:
    axes = Axes.over(GROUPS, range(4), (4,), rank)
    assert axes is not None
    with pytest.raises(ShunterError) as error:
        redistribute(torch.zeros(3, 3), (5, 3), parse("S0"), parse("B"), axes)
    return str(error.value)


def test_a_part_that_the_layout_does_not_give_is_refused(pool: Any) -> None:
    errors = pool.run(wrong_part, 4)[1:]
    assert "rank 3 holds [3, 3] of a tensor of [5, 3], but S0 over (4,) gives it [1, 3]" in errors[2]


def test_alone_nothing_is_moved() -> None:
    alone = Peers.alone()
    axes = Axes((alone, alone), alone)
    x = torch.randn(3, 4)
    for source, target in itertools.product(("S0", "B", "P"), repeat=2):
        moved = Moved()
        both = parse(f"{source},{target}"), parse(f"{target},{source}")
        assert torch.equal(redistribute(x, (3, 4), *both, axes, moved=moved), x)
        assert moved == Moved()


def on_a_mesh(rank: int, groups: Any, _: Any) -> tuple[Any, ...]:
    mesh = Mesh(Grid(dp=2, tp=2), rank, GROUPS)
    axes = Axes.of(mesh, "dp", "tp")
    part = torch.full((2, 3), float(rank))
    found = redistribute(part, (4, 3), parse("S0,P"), parse("B,B"), axes)
    return axes.hierarchy, axes.place, found[:, 0].tolist()


def test_axes_of_a_mesh(pool: Any) -> None:
    for rank, (hierarchy, place, found) in enumerate(pool.run(on_a_mesh, 4)):
        assert hierarchy == (2, 2)
        assert place == (rank // 2, rank % 2)
        assert found == [1.0, 1.0, 5.0, 5.0]  # ranks 0 and 1 added, then 2 and 3
