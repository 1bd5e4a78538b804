"""The choice of layouts: the cheapest is what trying all gives, and never dearer than the usual two.

What this cannot show: that bytes are time. A choice counts bytes over all links as one.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.blocks import Sizes, block, decoder, two_products
from shunter.layout.choose import cheapest, choose, in_order
from shunter.layout.eliminate import minimise, total
from shunter.layout.explain import explain, lines
from shunter.layout.graph import Graph
from shunter.layout.operators import Steps
from shunter.layout.placement import parse, told
from shunter.layout.problem import Prices, Problem, data_only, tensor_only
from tests.draws import some

SMALL = Sizes(rows=8, tokens=16, width=32, heads=4, groups=4, inner=64)


def by_trying(nodes: list[np.ndarray], edges: list[tuple[int, int, np.ndarray]]) -> float:
    """The least total, from one array over all choices at once."""
    every = np.zeros([len(it) for it in nodes])
    for index, costs in enumerate(nodes):
        every = every + costs.reshape([-1 if axis == index else 1 for axis in range(len(nodes))])
    for a, b, costs in edges:
        there = costs if a < b else costs.T
        shape = [1] * len(nodes)
        shape[a], shape[b] = costs.shape
        every = every + there.reshape(shape)
    return float(every.min())


@settings(max_examples=60)
@given(st.data())
def test_elimination_finds_what_trying_all_does(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = [int(it) for it in draw.integers(1, 5, count)]
    nodes = [draw.integers(0, 20, size).astype(float) for size in sizes]
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    density = data.draw(st.sampled_from([0.15, 0.4, 1.0]))
    edges = []
    for a, b in pairs:
        if draw.random() < density:
            costs = draw.integers(0, 20, (sizes[a], sizes[b])).astype(float)
            costs[draw.random(costs.shape) < 0.1] = np.inf  # not every pair is possible
            edges.append((a, b, costs))
    best = by_trying(nodes, edges)
    start = [int(it) for it in draw.integers(0, sizes)]
    for starts in ([], [start]):
        choice, exact = minimise(nodes, edges, starts)
        assert exact
        assert total(nodes, edges, choice) == best or not np.isfinite(best)
    # Where pairs get too many, what comes out is still no dearer than what it started from.
    rough, _ = minimise(nodes, edges, [start], limit=4)
    assert total(nodes, edges, rough) >= best
    assert total(nodes, edges, rough) <= total(nodes, edges, start)


@settings(max_examples=25)
@given(
    st.tuples(*(st.integers(2, 12) for _ in range(3))),
    st.sampled_from([(2,), (3,), (4,)]),
    st.sampled_from(["free", "dear", "forbidden"]),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_on_graphs_of_eight_operators(
    sizes: tuple[int, int, int], hierarchy: tuple[int, ...], to_partial: str, flop: float
) -> None:
    rows, width, inner = sizes
    graph = Graph()
    steps = Steps(graph)
    x = steps.source("x", "bi", rows, width)
    a, b = steps.source("A", "oi", inner, width), steps.source("B", "io", width, inner)
    steps.linear(x, "bi", [(a, "oi")], [("h", "bo")])
    steps.gelu("h", "bo", "g")
    steps.linear("g", "bo", [(b, "io")], [("z", "bi")])
    steps.add(x, "z", "bi", "y")
    steps.gelu("y", "bi", "out")
    graph.carry("out", x)
    assert len(graph.operators) == 8
    problem = Problem(graph, hierarchy, Prices(flop, to_partial))  # type: ignore[arg-type]
    found = cheapest(problem)
    assert found.exact
    edges = [(it.producer, it.consumer, m) for it, m in zip(problem.edges, problem.matrices, strict=True)]
    assert found.cost == by_trying(problem.nodes, edges)
    assert found.cost <= in_order(problem).cost


@some("devices", [2, 8, 4])
@pytest.mark.parametrize(
    "graph",
    [
        two_products(64, 32, 128),
        two_products(64, 33, 127),
        block(SMALL),
        block(Sizes(8, 64, 64, 8, 2, 96)),
        decoder(Sizes(8, 8, 32, 8, 8, 64, words=100), 1),
    ],
    ids=["products", "uneven products", "block", "long block", "decoder"],
)
def test_never_dearer_than_the_usual_two(graph: Graph, devices: int) -> None:
    chosen = choose(graph, (devices,))
    assert chosen.exact
    for rule in (data_only, tensor_only):
        usual = cheapest(Problem(graph, (devices,), rules=(rule,)))
        assert chosen.cost <= usual.cost
        assert chosen.bytes <= usual.bytes
    for policy in ("full", "most", "cost"):
        assert chosen.cost <= in_order(Problem(graph, (devices,)), policy).cost  # type: ignore[arg-type]


def test_rows_cut_move_the_weights_gradients_only() -> None:
    graph = block(SMALL)
    data = cheapest(Problem(graph, (4,), rules=(data_only,)))
    weights = sum(graph.values[it.outputs[0]].bytes for it in graph.operators if it.kind == "source") - sum(
        graph.values[name].bytes for name in ("x", "dy")
    )
    assert data.bytes == 2 * 3 * weights
    assert {line.source for line in lines(data)} == {"P"}


def test_weights_cut_move_four_all_reduces_of_the_activation() -> None:
    """Megatron's count: two forward, two backward, each 2 (p - 1) T."""
    graph = block(SMALL)
    tensor = cheapest(Problem(graph, (4,), rules=(tensor_only,)))
    assert tensor.bytes == 4 * 2 * 3 * graph.values["x"].bytes
    assert tensor.cost < tensor.bytes + 10  # no product is repeated; copies cut count 1 each


def test_two_axes_of_two_kinds() -> None:
    """dp x tp: each axis moves what it moves alone, on tensors that the other has cut or copied."""
    graph = block(SMALL)
    both = cheapest(Problem(graph, (2, 2), rules=(data_only, tensor_only)))
    text = explain(both, ("dp", "tp"))
    assert "2 x 2 devices move" in text
    assert "the 2 devices of dp add up and all keep the sum (all-reduce)" in text
    assert sum(line.bytes for line in lines(both)) == both.bytes


def test_large_batches_choose_to_cut_rows_and_wide_layers_weights() -> None:
    wide = choose(two_products(16, 512, 2048), (8,))
    assert told(wide.layout("h")) != "S0"
    assert "B" not in told(wide.layout("A"))
    long = choose(two_products(4096, 16, 64), (8,))
    assert told(long.layout("y")) == "S0"
    assert told(long.layout("h")) == "S0"


def test_hints_are_kept() -> None:
    graph = two_products(64, 32, 128)
    hinted = choose(graph, (4,), hints={"A": parse("B"), "h": parse("S0")})
    assert told(hinted.layout("A")) == "B"
    assert told(hinted.layout("h")) == "S0"
    first = in_order(Problem(graph, (4,), hints={"A": parse("B")}))
    assert told(first.layout("x")) == "S0"  # sources are cut along their first dim
    assert told(first.layout("h")) == "S0"  # two inputs lie as this signature wants them
    with pytest.raises(ShunterError, match=r"\['Z'\]"):
        Problem(graph, (4,), hints={"Z": parse("B")})
    with pytest.raises(ShunterError, match="hints fix h"):
        Problem(graph, (4,), hints={"h": parse("P"), "A": parse("B")}, rules=(data_only,))


def test_in_order_takes_what_lies_already() -> None:
    graph = Graph()
    steps = Steps(graph)
    x, w = steps.source("x", "bi", 8, 4), steps.source("w", "oi", 400, 4)
    steps.linear(x, "bi", [(w, "oi")], [("y", "bo")])
    hints = {"x": parse("S0"), "w": parse("S0")}
    problem = Problem(graph, (4,), hints=hints)
    # One input matches either way; gathering x costs less than gathering w.
    assert told(in_order(problem).layout("y")) == "S1"
    assert told(in_order(problem, "cost").layout("y")) == "S1"


def test_explanations_are_sentences() -> None:
    chosen = choose(block(SMALL), (4,))
    text = explain(chosen, ("tp",), most=3)
    assert text.startswith(f"4 devices move {chosen.bytes:,} bytes in all")
    assert "more," in text
    every = lines(chosen)
    assert [line.bytes for line in every] == sorted((line.bytes for line in every), reverse=True)
    assert sum(line.bytes for line in every) == chosen.bytes
    assert all(line.sentence for line in every)


@pytest.mark.long
@pytest.mark.parametrize("hierarchy", [(2, 2), (2, 4)])
def test_two_axes_never_dearer(hierarchy: tuple[int, ...]) -> None:
    graph = block(SMALL)
    chosen = choose(graph, hierarchy)
    for rules in product((data_only, tensor_only), repeat=2):
        assert chosen.cost <= cheapest(Problem(graph, hierarchy, rules=rules)).cost
