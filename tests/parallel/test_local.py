"""Each signature of each operator is true: computed on parts and put together, the result is that of the
whole.

One process plays all ranks, so that every signature of every operator is tried. Gradients are compared with
autograd's. What this cannot show: the conversions between operators (test_boxing.py, test_planned.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout import operators as ops
from shunter.layout.blocks import Sizes, block, decoder, two_products
from shunter.layout.graph import Graph
from shunter.layout.placement import Partial, Placements, held, places
from shunter.layout.signatures import Expression, Operator, letter_ranges, signatures
from shunter.parallel.local import KINDS, compute
from shunter.parallel.moving import inside

SIZES = Sizes(rows=4, tokens=5, width=16, heads=8, groups=2, inner=12, words=10)


def extra() -> list[Operator]:
    """Operators that the graphs below do not have."""
    graph = Graph()
    steps = ops.Steps(graph)
    x = steps.source("x", "bhts", 3, 4, 4, 5)
    wide = steps.source("wide", "btn", 3, 4, 8)
    y = steps.source("y", "btv", 3, 4, 7)
    graph.add("softmax", (x,), ("p",), ops.softmax("bhts"))
    graph.add("softmax gradient", (y, steps.source("dy", "btv", 3, 4, 7)), ("dx",), ops.SOFTMAX_GRAD)
    graph.add("heads", (wide,), ("seen",), ops.heads("btn->bthd", "n", "hd"), sizes={"h": 4, "d": 2})
    graph.add("heads", ("seen",), ("again",), ops.heads("bthd->btn", "n", "hd"))
    graph.add("transpose", ("seen",), ("turned",), ops.transpose("bthd->bhtd"))
    graph.add("cast", (y,), ("short",), ops.cast("btv"))
    graph.add("min", (y,), ("least",), ops.reduction("btv->bt", "min"))
    graph.add("sum", (y,), ("all",), ops.reduction("btv->"))
    return graph.operators


def distinct() -> list[Operator]:
    found: dict[tuple[str, Expression], Operator] = {}
    for graph in (block(SIZES), decoder(SIZES, 1), two_products(6, 8, 10)):
        for operator in graph.operators:
            found.setdefault((operator.kind, operator.expression), operator)
    return [it for it in (*found.values(), *extra()) if it.kind in KINDS and it.outputs]


OPERATORS = distinct()


def whole_inputs(operator: Operator) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(operator.name))
    found = []
    for name, word in zip(operator.inputs, operator.expression.inputs, strict=True):
        shape = operator.shape(word)
        if name in ("tokens", "targets"):
            found.append(torch.randint(0, operator.sizes["v"], shape, generator=generator))
        else:
            found.append(torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5)
    return found


def everything(operator: Operator) -> dict[str, tuple[int, int]]:
    return {letter: (0, length) for letter, length in operator.sizes.items()}


def parts_of(whole: Tensor, placements: Placements, hierarchy: Sequence[int], seed: int) -> list[Tensor]:
    """One a rank; of a sum, drawn terms; of a maximum, the whole and less."""
    shape, hierarchy = tuple(whole.shape), tuple(hierarchy)
    terms = {(): whole}
    generator = torch.Generator().manual_seed(seed)
    for it, size in zip(placements, hierarchy, strict=True):
        fresh: dict[tuple[int, ...], Tensor] = {}
        for prefix, term in terms.items():
            drawn = [term] * size
            if isinstance(it, Partial):
                others = [torch.rand(shape, generator=generator, dtype=whole.dtype) for _ in range(size - 1)]
                if it.op == "sum":
                    drawn = [term - sum(others), *others]
                else:
                    sign = -1 if it.op == "max" else 1
                    drawn = [term, *(term + sign * other for other in others)]
            fresh.update({(*prefix, index): one for index, one in enumerate(drawn)})
        terms = fresh
    full = tuple((0, n) for n in shape)
    return [
        terms[place][inside(held(shape, placements, hierarchy, place), full)] for place in places(hierarchy)
    ]


def together(parts: list[Tensor], shape: tuple[int, ...], placements: Placements, hierarchy: Any) -> Tensor:
    """The whole tensor; copies have to agree."""
    found: list[Tensor] = []
    for place, part in zip(places(hierarchy), parts, strict=True):
        full = torch.full(shape, float("nan"), dtype=part.dtype)
        ranges = held(shape, placements, hierarchy, place)
        assert tuple(part.shape) == tuple(b - a for a, b in ranges)
        full[inside(ranges, tuple((0, n) for n in shape))] = part
        found.append(full)
    for axis in reversed(range(len(hierarchy))):
        size, it = hierarchy[axis], placements[axis]
        merged = []
        for begin in range(0, len(found), size):
            stack = torch.stack(found[begin : begin + size])
            if isinstance(it, Partial):
                merged.append({"sum": stack.sum, "max": stack.amax, "min": stack.amin}[it.op](0))
            else:
                clean = stack.nan_to_num(float("-inf")).amax(0)
                clean[stack.isnan().all(0)] = float("nan")
                both = ~stack.isnan()
                assert torch.allclose(stack[both], clean.expand_as(stack)[both], atol=1e-12), "copies differ"
                merged.append(clean)
        found = merged
    return found[0]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda it: f"{it.kind}: {it.name}")
def test_every_signature_is_true(operator: Operator) -> None:
    inputs = whole_inputs(operator)
    truth = compute(operator, inputs, everything(operator))
    tried = 0
    for hierarchy in ((2,), (3,), (2, 2)):
        for signature in signatures(operator, hierarchy):
            given = [
                parts_of(whole, it, hierarchy, seed)
                for seed, (whole, it) in enumerate(zip(inputs, signature.inputs, strict=True))
            ]
            made = [
                compute(
                    operator, [it[rank] for it in given], letter_ranges(operator, signature, hierarchy, place)
                )
                for rank, place in enumerate(places(hierarchy))
            ]
            for index, (expected, it) in enumerate(zip(truth, signature.outputs, strict=True)):
                found = together([one[index] for one in made], tuple(expected.shape), it, hierarchy)
                tolerance = 1e-3 if operator.kind == "cast" else 1e-9
                assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), str(signature)
            tried += 1
    assert tried > 3


def test_every_kind_is_tried() -> None:
    assert {it.kind for it in OPERATORS} == KINDS.keys()


def forward_and_backward(graph: Graph, sources: dict[str, Tensor]) -> dict[str, Tensor]:
    made = dict(sources)
    for operator in graph.operators:
        if operator.kind != "source":
            outputs = compute(operator, [made[it] for it in operator.inputs], everything(operator))
            made.update(zip(operator.outputs, outputs, strict=True))
    return made


def drawn(graph: Graph, words: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for operator in graph.operators:
        if operator.kind == "source":
            (name,), (word,) = operator.outputs, operator.expression.outputs
            shape = operator.shape(word)
            if name in ("tokens", "targets"):
                found[name] = torch.randint(0, words, shape, generator=generator)
            else:
                found[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
    return found


def test_a_block_is_the_model_s_block() -> None:
    """Forward and all gradients of the graph, against autograd through shunter.models."""
    from shunter.models.decoder import Block, Decoder
    from shunter.models.spec import DecoderSpec

    spec = DecoderSpec(
        dim=16,
        num_layers=1,
        num_heads=8,
        num_kv_heads=2,
        head_dim=2,
        ffn_dim=12,
        vocab_size=10,
        norm_eps=1e-5,
    )
    graph = block(SIZES)
    sources = drawn(graph)
    model = Decoder(spec).double()
    layer = model.layers[0]
    assert isinstance(layer, Block)
    s = sources
    with torch.no_grad():
        layer.attention_norm.weight.copy_(s["attention norm"])
        layer.ffn_norm.weight.copy_(s["ffn norm"])
        layer.attention.qkv.weight.copy_(torch.cat([s[it].reshape(-1, 16) for it in ("Wq", "Wk", "Wv")]))
        layer.attention.out.weight.copy_(s["Wo"].reshape(16, -1))
        layer.ffn.gate_up.weight.copy_(torch.cat([s["gate"], s["up"]]))
        layer.ffn.down.weight.copy_(s["down"])
    x = s["x"].clone().requires_grad_()
    rope, _ = model.geometry(torch.arange(5).expand(4, 5), None, torch.float64)
    y = layer(x, rope, None, None, None)
    y.backward(s["dy"])
    made = forward_and_backward(graph, sources)
    assert x.grad is not None
    assert torch.allclose(made["y"], y, atol=1e-9)
    assert torch.allclose(made[str(graph.gradient("x"))], x.grad, atol=1e-9)
    grads = {name: made[str(graph.gradient(name))] for name in s if name not in ("x", "dy")}
    qkv = torch.cat([grads[it].reshape(-1, 16) for it in ("Wq", "Wk", "Wv")])
    for ours, theirs in (
        (qkv, layer.attention.qkv.weight),
        (grads["Wo"].reshape(16, -1), layer.attention.out.weight),
        (torch.cat([grads["gate"], grads["up"]]), layer.ffn.gate_up.weight),
        (grads["down"], layer.ffn.down.weight),
        (grads["attention norm"], layer.attention_norm.weight),
        (grads["ffn norm"], layer.ffn_norm.weight),
    ):
        assert theirs.grad is not None
        assert torch.allclose(ours, theirs.grad, atol=1e-9)


def test_ends_of_a_decoder_and_gelu_against_autograd() -> None:
    graph = decoder(SIZES, 1)
    sources = drawn(graph, words=10)
    sources["dloss"] = torch.ones((), dtype=torch.float64)
    made = forward_and_backward(graph, sources)
    logits = made["logits"].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), sources["targets"].flatten(), reduction="sum"
    )
    loss.backward()
    assert torch.allclose(made["loss"], loss.detach())
    assert logits.grad is not None
    assert torch.allclose(made["d logits"], logits.grad)
    table = sources["embed"].clone().requires_grad_()
    torch.nn.functional.embedding(sources["tokens"], table).backward(made[str(graph.gradient("x"))])
    assert table.grad is not None
    assert torch.allclose(made[str(graph.gradient("embed"))], table.grad)
    pair = two_products(6, 8, 10)
    sources = drawn(pair)
    made = forward_and_backward(pair, sources)
    x, a, b = (sources[it].clone().requires_grad_() for it in ("x", "A", "B"))
    y = torch.nn.functional.gelu(x @ a.T) @ b.T
    y.backward(sources["dy"])
    for name, leaf in (("x", x), ("A", a), ("B", b)):
        assert leaf.grad is not None
        assert torch.allclose(made[str(pair.gradient(name))], leaf.grad, atol=1e-9)


def test_a_kind_that_nothing_computes_is_named() -> None:
    with pytest.raises(ShunterError, match="nothing computes 'convolution'"):
        compute(Operator("c", "convolution", (), (), Expression((), (), ""), {}), [], {})
