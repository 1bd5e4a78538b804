"""A chosen layout of a whole graph on real ranks: every tensor is that of one process, and bytes are as
predicted.

In float64, over one and two axes, for the cheapest choice and the usual ones. What this cannot show: speed.
"""

from __future__ import annotations

from datetime import timedelta
from math import prod
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shunter.config.errors import ShunterError
from shunter.layout.blocks import Sizes, block, decoder, two_products
from shunter.layout.choose import Choice, cheapest, choose, in_order
from shunter.layout.graph import Graph
from shunter.layout.problem import Prices, Problem, data_only, tensor_only
from shunter.parallel.boxing import Axes
from shunter.parallel.mesh import Peers, ProcessGroups
from shunter.parallel.moving import Moved
from shunter.parallel.planned import cut, execute, whole
from tests.parallel.test_local import drawn, forward_and_backward

GROUPS = ProcessGroups(timeout=timedelta(seconds=60))
SIZES = Sizes(rows=4, tokens=6, width=16, heads=8, groups=2, inner=12, words=11)
KINDS = ("block", "decoder", "products")
RULES = {"data": data_only, "tensor": tensor_only}


def graph_of(kind: str) -> Graph:
    if kind == "products":
        return two_products(7, 9, 10, 8)
    return block(SIZES, 8) if kind == "block" else decoder(SIZES, 1, 8)


def chosen(kind: str, hierarchy: tuple[int, ...], names: str) -> Choice:
    graph = graph_of(kind)
    if names == "in order":
        # One after another, with parts of sums allowed: layouts that nobody would choose.
        return in_order(Problem(graph, hierarchy, Prices(to_partial="free")), "cost")
    if names == "any":
        return choose(graph, hierarchy)
    return cheapest(Problem(graph, hierarchy, rules=tuple(RULES[it] for it in names.split())))


def a_step(rank: int, groups: Any, cases: list[Any]) -> list[str]:
    wrong = []
    for kind, hierarchy, names, choice in cases:
        axes = Axes.over(GROUPS, range(prod(hierarchy)), hierarchy, rank)
        if axes is None:
            continue
        graph = choice.graph
        sources = drawn(graph, words=11)
        sources = {it: one if one.dtype == torch.int64 else one / 4 for it, one in sources.items()}
        truth = forward_and_backward(graph, sources)
        moved = Moved()
        parts = {it: cut(one, choice.layout(it), axes) for it, one in sources.items()}
        made = execute(choice, parts, axes, moved)
        for it, one in truth.items():
            found = whole(made[it], tuple(one.shape), choice.layout(it), axes)
            if not torch.allclose(found, one, atol=1e-9):
                wrong.append(f"{kind} {hierarchy} {names}: {it} is off by {float((found - one).abs().max())}")
        for new, source in graph.carried.items():
            found = whole(made[f"next {source}"], tuple(truth[new].shape), choice.layout(source), axes)
            if not torch.allclose(found, truth[new], atol=1e-9):
                wrong.append(f"{kind} {hierarchy} {names}: next {source}")
        total = torch.tensor(moved.bytes)
        dist.all_reduce(total, group=axes.whole.group)
        if int(total) != choice.bytes:
            wrong.append(f"{kind} {hierarchy} {names}: {int(total)} bytes moved, {choice.bytes} predicted")
    return wrong


def run(pool: Any, cases: list[Any]) -> None:
    cases = [(*case, chosen(*case)) for case in cases]
    for rank, wrong in enumerate(pool.run(a_step, 4, cases)):
        assert wrong == [], f"rank {rank}"


def test_chosen_for_one_axis(pool: Any) -> None:
    run(
        pool,
        [("block", (4,), "any"), ("decoder", (4,), "any"), *(("products", (it,), "any") for it in (2, 3, 4))],
    )


def test_rows_or_weights_cut(pool: Any) -> None:
    cases = [(kind, (2,), names) for kind in KINDS for names in ("data", "tensor", "in order")]
    run(pool, [*cases, ("block", (4,), "data"), ("decoder", (4,), "in order"), ("block", (3,), "in order")])


def test_two_axes(pool: Any) -> None:
    run(pool, [("block", (2, 2), names) for names in ("data tensor", "tensor data", "in order")])


def test_refusals() -> None:
    graph = two_products(4, 4, 4)
    choice = choose(graph, (1,))
    alone = Axes((Peers.alone(),), Peers.alone())
    with pytest.raises(ShunterError, match="starts with 'x', which is not given"):
        execute(choice, {}, alone)
    with pytest.raises(ShunterError, match=r"for \(2,\), and the ranks stand in \(1,\)"):
        execute(choose(graph, (2,)), {}, alone)
