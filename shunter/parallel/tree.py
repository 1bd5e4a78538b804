"""What passes between stages: a named tree of tensors, and its specification."""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor

Tree = dict[str, Tensor]


class Leaf(NamedTuple):
    """One tensor of a tree, without its values. `grad`: a gradient comes back for it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    grad: bool

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


Spec = tuple[Leaf, ...]


def spec_of(tree: Tree) -> Spec:
    """Leaves in order of their names, so that both ends agree on it."""
    return tuple(
        Leaf(name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in sorted(tree.items())
    )


def encode(spec: Spec) -> bytes:
    """A specification as JSON."""
    rows = [[leaf.name, leaf.shape, str(leaf.dtype).removeprefix("torch."), leaf.grad] for leaf in spec]
    return json.dumps(rows).encode()


def decode(data: bytes) -> Spec:
    """The specification that `encode` wrote."""
    return tuple(
        Leaf(name, tuple(shape), getattr(torch, dtype), grad) for name, shape, dtype, grad in json.loads(data)
    )
