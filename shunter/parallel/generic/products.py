"""Products and tables computed in parts: each by itself, or two kinds of products as a pair.

By itself a product takes a whole input and gives a whole output, so it is right wherever it stands: outputs
are brought together, or inputs taken apart and outputs added up. In a pair the first products leave their
outputs in parts, and the second takes them so: one sum forward and one backward for both (arXiv 1909.08053,
section 3). That is right only if what is computed between does not mind; a trial shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.layout.anymodel import Cut
from shunter.layout.piece import balanced
from shunter.layout.rules import Kind
from shunter.parallel.generic.collectives import bring, enter, leave, take
from shunter.parallel.generic.shards import plain_class
from shunter.parallel.mesh import Peers
from shunter.private import AnyConv, parameters_of


def kind_of(module: nn.Module) -> Kind:
    """What rules call the layer that has a parameter `weight`."""
    if isinstance(module, nn.Linear | nn.Bilinear):
        return "linear"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, AnyConv):
        return "transposed" if module.transposed else "conv"
    if is_conv1d(module):
        return "transposed"
    return "other"


def is_conv1d(module: nn.Module) -> bool:
    """Hugging Face's Conv1D: a product whose weight is [in, out]. shunter does not import transformers."""
    kind = plain_class(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") and hasattr(module, "nf")


def computable(module: nn.Module) -> bool:
    """Whether the product, or the table, is one that is computed in parts here; others' weights are brought
    together. Subclasses may compute anything, so they are others."""
    kind = plain_class(module)
    if kind is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return kind is nn.Linear or is_conv1d(module)


class Entrance:
    """Into a pair's first products: those that take the same tensor share one sum of gradients."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.seen: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.seen is None or self.seen[0] is not x:
            self.seen = x, enter(x, self.peers)
        return self.seen[1]

    def close(self) -> None:
        """Keep no activation beyond the pair."""
        self.seen = None


class Product:
    """Takes the place of a product's `forward`. entrance: of the pair that it is in; None by itself."""

    def __init__(self, module: nn.Module, cut: Cut, peers: Peers) -> None:
        self.module, self.cut, self.peers = module, cut, peers
        self.entrance: Entrance | None = None
        self.transposed = is_conv1d(module)

    def __call__(self, x: Tensor) -> Tensor:
        parameters = parameters_of(self.module)
        stored, bias = parameters["weight"], parameters["bias"]
        assert stored is not None
        weight: Tensor = stored.mT if self.transposed else stored
        if self.cut.output:
            alone = self.entrance is None
            y = F.linear(enter(x, self.peers) if self.entrance is None else self.entrance(x), weight, bias)
            return bring(y, -1, self.peers, self.cut.blocks) if alone else y
        y = leave(F.linear(take(x, -1, self.peers) if self.entrance is None else x, weight), self.peers)
        if self.entrance is not None:
            self.entrance.close()
        return y if bias is None else y + bias.to(y.dtype)


class Table:
    """Takes the place of an embedding's `forward`. sliced: give this rank's part of each row's numbers."""

    def __init__(self, module: nn.Embedding, cut: Cut, peers: Peers) -> None:
        self.module, self.cut, self.peers = module, cut, peers
        self.sliced = False

    def __call__(self, ids: Tensor) -> Tensor:
        found = self._found(ids)
        return take(found, -1, self.peers) if self.sliced else found

    def _found(self, ids: Tensor) -> Tensor:
        weight, padding = parameters_of(self.module)["weight"], self.module.padding_idx
        assert weight is not None
        if self.cut.dim is None:
            return F.embedding(ids, weight, padding)
        if self.cut.dim == 1:
            return bring(F.embedding(ids, weight, padding), -1, self.peers)
        begin, end = balanced(self.module.num_embeddings, self.peers.size, self.peers.index)
        own = (ids >= begin) & (ids < end)
        if padding is not None:
            padding = padding - begin if begin <= padding < end else None
        # What is no row of the whole table stays an error, on every rank.
        inside = (ids >= 0) & (ids < self.module.num_embeddings)
        row = torch.where(own, ids - begin, torch.where(inside, 0, -1))
        return leave(F.embedding(row, weight, padding) * own[..., None], self.peers)


Computing = Product | Table


def install(module: nn.Module, computing: Computing) -> None:
    """Let the module compute so from now on."""
    module.forward = computing


def installed(module: nn.Module) -> Iterator[tuple[str, Computing]]:
    """Products and tables at or below a module, in its order, with their paths."""
    for name, each in module.named_modules():
        computing: Any = each.__dict__.get("forward")
        if isinstance(computing, Product | Table):
            yield name, computing
