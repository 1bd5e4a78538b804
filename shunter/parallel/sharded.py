"""Stages whose weights are sharded by FSDP2: gathered, given up and reduced when the program says so.

FSDP2 would do all three by itself, after each micro-batch. Between the halves of a backward that is wrong:
weights that were resharded have no place for the gradient of the later half (torch 2.13 loses it without a
word). So its own timing is switched off, and UNSHARD, RESHARD and REDUCE_GRAD of the program take its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.distributed.fsdp import FSDPModule

from shunter.parallel.executor import Handler
from shunter.parallel.stage import Stage
from shunter.parallel.tree import Tree
from shunter.private import reduce_gradients
from shunter.schedule.action import REDUCE, RESHARD, UNSHARD
from shunter.schedule.program import Node


def hand_over(module: nn.Module) -> None:
    """Leave the timing of a module, to which `fully_shard` was applied, to the program.

    Gradients are summed over the ranks, not averaged: losses are normalised by global counts beforehand.
    Raises ValueError for a module without sharded parts.
    """
    parts = _parts(module)
    if not parts or not isinstance(module, FSDPModule):
        raise ValueError("fully_shard was not applied to the module")
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor in float32
    _defer(module)


def sharded_handlers(stages: Mapping[int, Stage]) -> dict[str, Handler]:
    """For an Executor whose program was lowered with `shard=True, reduce=True`."""

    def gather(node: Node, _: Tree) -> None:
        for part in _parts(stages[node.stage].module):
            part.unshard()

    def give_up(node: Node, _: Tree) -> None:
        for part in _parts(stages[node.stage].module):
            part.reshard()

    def reduce(node: Node, _: Tree) -> None:
        module = stages[node.stage].module
        assert isinstance(module, FSDPModule)
        module.set_is_last_backward(True)
        module.set_requires_gradient_sync(True)
        reduce_gradients(module)
        _defer(module)

    return {UNSHARD: gather, RESHARD: give_up, REDUCE: reduce}


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _defer(module: FSDPModule) -> None:
    module.set_is_last_backward(False)
    module.set_requires_gradient_sync(False)
    module.set_reshard_after_backward(False)
