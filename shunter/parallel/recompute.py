"""Layers whose inside is computed once more for their backward, so that less of it is held.

full       a layer keeps its inputs.
selective  it keeps the results of its matrix products and of attention too, which are dear to compute, and
           computes what is between them again (arXiv 2205.05198, section 5, the other way round: what it
           drops is cheap). Messages are sent again in both.

torch's checkpoint does the work, and stops the second time at the last thing that a backward needs: the last
product of a layer, and the message after it, are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shunter.private import Only, kernels_of_products

_ATEN = torch.ops.aten
# What is kept of a layer by `selective`. Products of attention by hand are not among them: they are as large
# as the row is long, squared.
KEPT = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.linear.default, *kernels_of_products()}


def recompute_layer(layer: nn.Module, *, selective: bool = False) -> None:
    """From now on the layer's forward, where it is learnt from, keeps as little as that.

    Inside of what `fully_shard` does around a layer, so that weights are not gathered once more. A layer that
    is to be compiled is compiled before: then all of it runs once more.
    """
    layer.forward = _Again(layer, selective)


class _Again:
    """Stands in for a layer's forward; a class, so that the module can still be copied."""

    def __init__(self, layer: nn.Module, selective: bool) -> None:
        self.layer, self.selective = layer, selective
        self.plain: Callable[..., Any] = layer.forward  # compiled, where it is

    def __call__(self, *inputs: Any) -> Any:
        run = self.plain
        if not torch.is_grad_enabled():
            return run(*inputs)
        if not self.selective:
            return checkpoint(run, *inputs, use_reentrant=False)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[Only, Only]:
    first, second = create_selective_checkpoint_contexts(_policy)
    return Only(first, KEPT), Only(second, KEPT)


def _policy(context: Any, operation: Any, *args: Any, **more: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE
