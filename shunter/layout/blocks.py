"""Graphs of two products, of a Transformer block, and of a small decoder, each with backward and update."""

from __future__ import annotations

from dataclasses import dataclass

from shunter.layout.graph import Graph
from shunter.layout.operators import Steps


@dataclass(frozen=True)
class Sizes:
    """Of a block in a batch. heads: of queries; groups: heads of keys and values, which divide them."""

    rows: int
    tokens: int
    width: int
    heads: int
    groups: int
    inner: int  # width inside the feed-forward layer
    words: int = 0  # of the vocabulary, for a whole decoder

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def two_products(rows: int, width: int, inner: int, itemsize: int = 4) -> Graph:
    """y = gelu(x A) B with its gradients of A, B and x, one of many such pairs: y lies as x, dx as dy."""
    graph = Graph(itemsize)
    steps = Steps(graph)
    x, dy = (steps.source(name, "bi", rows, width) for name in ("x", "dy"))
    first, second = steps.source("A", "oi", inner, width), steps.source("B", "oi", width, inner)
    steps.linear(x, "bi", [(first, "oi")], [("h", "bo")])
    steps.gelu("h", "bo", "a")
    steps.linear("a", "bo", [(second, "io")], [("y", "bi")])
    steps.backward("y", dy)
    graph.carry("y", x)
    graph.carry(str(graph.gradient(x)), dy)
    _updates(steps, [first, second])
    return graph


def block(sizes: Sizes, itemsize: int = 4) -> Graph:
    """One of many equal blocks: RMSNorm, grouped-query attention with rotary positions, SwiGLU.

    What leaves it lies as what enters it, forward and backward; a gradient lies as its weight.
    """
    graph = Graph(itemsize)
    steps = Steps(graph)
    x, dy = (steps.source(name, "btd", sizes.rows, sizes.tokens, sizes.width) for name in ("x", "dy"))
    weights = _block(steps, sizes, x, "")
    steps.backward("y", dy)
    graph.carry("y", x)
    graph.carry(str(graph.gradient(x)), dy)
    _updates(steps, weights)
    return graph


def decoder(sizes: Sizes, layers: int, itemsize: int = 4) -> Graph:
    """Embedding, blocks, norm, head and cross-entropy, from tokens to updates."""
    graph = Graph(itemsize)
    steps = Steps(graph)
    tokens, targets = (
        steps.source(name, "bt", sizes.rows, sizes.tokens, itemsize=8) for name in ("tokens", "targets")
    )
    one = steps.source("dloss", "")
    weights = [steps.source("embed", "vd", sizes.words, sizes.width)]
    x = steps.embedding(tokens, weights[0], "x")
    for layer in range(layers):
        made = _block(steps, sizes, x, f"{layer} ")
        weights, x = [*weights, *made], f"{layer} y"
    weights += [
        steps.source("last norm", "d", sizes.width),
        steps.source("head", "vd", sizes.words, sizes.width),
    ]
    out = steps.norm(x, weights[-2], "out")
    steps.linear(out, "btd", [(weights[-1], "vd")], [("logits", "btv")])
    steps.cross_entropy("logits", targets, "loss")
    steps.backward("loss", one)
    _updates(steps, weights)
    return graph


def _block(steps: Steps, sizes: Sizes, x: str, tag: str) -> list[str]:
    """Writes one block whose output is called `{tag}y`; returns its weights."""
    k, g, d, i = sizes.groups, sizes.heads // sizes.groups, sizes.head_width, sizes.width

    def weight(name: str, word: str, *lengths: int) -> str:
        return steps.source(f"{tag}{name}", word, *lengths)

    names = [
        weight("attention norm", "d", i),
        weight("Wq", "kgdi", k, g, d, i),
        weight("Wk", "kdi", k, d, i),
        weight("Wv", "kdi", k, d, i),
        weight("Wo", "ikgd", i, k, g, d),
        weight("ffn norm", "d", i),
        weight("gate", "fi", sizes.inner, i),
        weight("up", "fi", sizes.inner, i),
        weight("down", "if", i, sizes.inner),
    ]
    norm1, wq, wk, wv, wo, norm2, gate, up, down = names
    a = steps.norm(x, norm1, f"{tag}a")
    q, key, value = steps.linear(
        a,
        "bti",
        [(wq, "kgdi"), (wk, "kdi"), (wv, "kdi")],
        [(f"{tag}q", "btkgd"), (f"{tag}k", "btkd"), (f"{tag}v", "btkd")],
    )
    turned = steps.rope(q, "btkgd", f"{tag}q turned"), steps.rope(key, "btkd", f"{tag}k turned")
    heads = steps.attention(*turned, value, f"{tag}heads")
    steps.linear(heads, "btkgd", [(wo, "ikgd")], [(f"{tag}attended", "bti")])
    middle = steps.add(x, f"{tag}attended", "btd", f"{tag}middle")
    f = steps.norm(middle, norm2, f"{tag}f")
    both = steps.linear(f, "bti", [(gate, "fi"), (up, "fi")], [(f"{tag}g", "btf"), (f"{tag}u", "btf")])
    inner = steps.swiglu(both[0], both[1], "btf", f"{tag}inner")
    steps.linear(inner, "btf", [(down, "if")], [(f"{tag}fed", "bti")])
    steps.add(middle, f"{tag}fed", "btd", f"{tag}y")
    return names


def _updates(steps: Steps, weights: list[str]) -> None:
    for weight in weights:
        steps.update(weight)
