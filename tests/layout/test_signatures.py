"""Signatures deduced from index expressions are the published ones, and errors name operator, tensor and
layouts.

That they compute the right thing is shown by tests/parallel/test_local.py.
"""

from __future__ import annotations

import pytest

from shunter.config.errors import ShunterError
from shunter.layout import operators as ops
from shunter.layout.blocks import Sizes, block
from shunter.layout.graph import Graph
from shunter.layout.operators import Steps
from shunter.layout.placement import dual, parse, told
from shunter.layout.signatures import Expression, Operator, deduce, follow, letter_ranges, signatures


def written(expression: Expression) -> set[str]:
    return {
        " ".join(told(it) for it in one.inputs) + " -> " + " ".join(told(it) for it in one.outputs)
        for one in deduce(expression)
    }


def operator(expression: Expression, **sizes: int) -> Operator:
    names = [
        tuple(f"{side}{i}" for i in range(n))
        for side, n in (("in", len(expression.inputs)), ("out", len(expression.outputs)))
    ]
    return Operator("it", "linear", names[0], names[1], expression, sizes)


def test_matrix_product() -> None:
    published = {"S0 B -> S0", "B S1 -> S1", "S1 S0 -> P", "P B -> P", "B P -> P", "B B -> B"}
    assert written(ops.einsum("ik,kj->ij")) == published


def test_two_axes_by_the_paper_s_example() -> None:
    product = operator(ops.einsum("ik,kj->ij"), i=4, j=4, k=4)
    assert follow(product, [parse("S0,B"), parse("B,S1")], (2, 2)).outputs == (parse("S0,S1"),)
    assert follow(product, [parse("S0,S1"), parse("B,S0")], (2, 2)).outputs == (parse("S0,P"),)


def test_linear_operators_keep_parts_and_others_forbid_them() -> None:
    assert "P P -> P" in written(ops.elementwise("bt", 2, linear=[[0, 1]]))
    assert not [it for it in written(ops.elementwise("bt", 1)) if "P" in it]
    assert not [it for it in written(ops.softmax("bhts")) if "P" in it or "S3" in it]
    assert written(ops.transpose("bthd->bhtd")) >= {"S1 -> S2", "S2 -> S1", "Pmax -> Pmax"}
    assert "P -> P" in written(ops.cast("bt"))
    assert written(ops.reduction("btv->bt", "max")) == {
        "S0 -> S0", "S1 -> S1", "S2 -> Pmax", "Pmax -> Pmax", "B -> B",
    }  # fmt: skip


def test_attention_by_heads_and_by_queries() -> None:
    found = written(ops.ATTENTION)
    assert "S2 S2 S2 -> S2" in found  # heads of keys and values, with their queries
    assert "S3 B B -> S3" in found  # more ranks than heads of keys: these are copied
    assert "S1 B B -> S1" in found  # queries, each rank with all keys
    assert not [it for it in found if it.startswith(("S4", "B S1"))]  # never the width, nor keys alone


def test_gradients_of_a_linear_layer_are_the_duals() -> None:
    graph = Graph()
    steps = Steps(graph)
    x, w = steps.source("x", "bi", 8, 8), steps.source("w", "oi", 8, 8)
    steps.linear(x, "bi", [(w, "oi")], [("y", "bo")])
    steps.source("dy", "bo", 8, 8)
    steps.backward("y", "dy")
    forward, into, of_weight = (it for it in graph.operators if it.kind == "linear")
    for one in signatures(forward, (4,)):
        if one.cut == ("",):
            continue
        (x_at, w_at), (y_at,) = one.inputs, one.outputs
        back = {it.inputs: it.outputs[0] for it in signatures(into, (4,))}
        assert back[dual(y_at), w_at] == dual(x_at)
        weights = {it.inputs: it.outputs[0] for it in signatures(of_weight, (4,))}
        assert weights[x_at, dual(y_at)] == dual(w_at)


def test_fused_projections_of_unequal_heads() -> None:
    graph = block(Sizes(4, 8, 32, 8, 2, 64))
    qkv = next(it for it in graph.operators if it.outputs == ("q", "k", "v"))
    by_cut = {one.cut: one for one in signatures(qkv, (2,))}
    assert [told(it) for it in by_cut["k",].inputs] == ["B", "S0", "S0", "S0"]
    # Queries of a group cut: keys and values are made on every rank.
    assert [told(it) for it in by_cut["g",].outputs] == ["S3", "B", "B"]
    assert [told(it) for it in by_cut["i",].outputs] == ["P", "P", "P"]
    back = next(it for it in graph.operators if it.inputs[:1] == ("d q",) and len(it.inputs) == 6)
    # A sum of parts (from queries) and of a whole (from keys) is neither: this is no signature.
    assert ("g",) not in {one.cut for one in signatures(back, (2,))}


def test_heads_seen_as_a_width_are_cut_between_heads() -> None:
    seen = ops.heads("btn->bthd", "n", "hd")
    assert "S2 -> S2" in written(seen)
    even, uneven = operator(seen, b=2, t=2, h=4, d=3, n=12), operator(seen, b=2, t=2, h=3, d=4, n=12)
    assert (parse("S2"),) in [one.inputs for one in signatures(even, (2,))]
    assert (parse("S2"),) not in [one.inputs for one in signatures(uneven, (2,))]


def test_what_shapes_cannot_split_is_dropped() -> None:
    product = operator(ops.einsum("ik,kj->ij"), i=3, j=8, k=8)
    assert "i" not in {one.cut[0] for one in signatures(product, (4,))}
    assert "i" in {one.cut[0] for one in signatures(product, (3,))}


def test_ranges_of_letters() -> None:
    product = operator(ops.einsum("ik,kj->ij"), i=5, j=7, k=8)
    one = next(it for it in signatures(product, (2, 2)) if it.cut == ("i", "j"))
    assert letter_ranges(product, one, (2, 2), (1, 0)) == {"i": (3, 5), "j": (0, 4), "k": (0, 8)}


def test_errors_name_operator_tensors_and_layouts() -> None:
    graph = Graph()
    steps = Steps(graph)
    x, w = steps.source("x", "btd", 4, 4, 8), steps.source("scale", "d", 8)
    steps.norm(x, w, "y")
    with pytest.raises(
        ShunterError, match=r"norm 'y' cannot take x \[S2\], scale \[S0\].*\[S0\] \[B\] -> \[S0\]"
    ):
        follow(graph.operator("y"), [parse("S2"), parse("S0")], (2,))
    with pytest.raises(ShunterError, match="takes 'z', which no operator made"):
        steps.add("z", x, "btd", "other")
    with pytest.raises(ShunterError, match="makes 'y' a second time"):
        steps.norm(x, w, "y")
    with pytest.raises(ShunterError, match="d is 4 in 'w2' and 8 elsewhere"):
        steps.norm(x, steps.source("w2", "d", 4), "other")
