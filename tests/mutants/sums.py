"""Gradients added up wrongly, norms counted wrongly, rows dealt out wrongly, weights sharded wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from shunter.data.tokens import Batch
from shunter.layout.grid import DENSE
from shunter.layout.holding import Holding
from shunter.parallel import gradients, part
from shunter.parallel.mesh import Peers
from shunter.parallel.part import DecoderPart
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.mutants.mutant import Mutant
from tests.train import layouts


def declared(change: Callable[[str, Holding], Holding]) -> Callable[[Any], Any]:
    """Other declarations of what is held."""

    def make(original: Any) -> Any:
        def mutant(*args: Any, **more: Any) -> dict[str, Holding]:
            return {name: change(name, holding) for name, holding in original(*args, **more).items()}

        return mutant

    return make


def without(axis: str) -> Callable[[str, Holding], Holding]:
    return lambda name, held: replace(held, partial=tuple(each for each in held.partial if each != axis))


def wrong_axis(name: str, held: Holding) -> Holding:
    return replace(held, partial=tuple("dp" if axis == "cp" else axis for axis in held.partial))


def twice(original: Any) -> Any:
    def mutant(*args: Any) -> None:
        original(*args)
        original(*args)

    return mutant


def last_group_only(original: Any) -> Any:
    """Each list of gradients loses its last one."""

    def mutant(found: list[Tensor], peers: Peers) -> None:
        original(found[:-1] or found, peers)

    return mutant


def all_tensor_ranks(original: Any) -> Any:
    return lambda rows, peers, every: original(rows, peers, peers.size)


def without_shared(original: Any) -> Any:
    def mutant(parameters: Any, held: Any, mesh: Any, twice: Any) -> Tensor:
        return original(
            parameters, {name: replace(each, shared=()) for name, each in held.items()}, mesh, twice
        )

    return mutant


def of_one_stage(original: Any) -> Any:
    def mutant(self: World, tensor: Tensor, peers: Peers | None = None) -> Tensor:
        stage = self.mesh.peers(*DENSE[1:])
        return original(self, tensor, stage if peers is None and tensor.ndim == 0 else peers)

    return mutant


def last_lost(original: Any) -> Any:
    def mutant(self: LaidOutPasses, batches: list[Batch], factors: list[Tensor], *more: Any) -> None:
        original(self, batches, [*factors[:-1], 0 * factors[-1]], *more)

    return mutant


def some_twice(original: Any) -> Any:
    def mutant(ids: np.ndarray, parts: int) -> list[np.ndarray]:
        size = -(-len(ids) // parts)
        return [ids[np.arange(part * size, (part + 1) * size) % len(ids)] for part in range(parts)]

    return mutant


def mean_of_means(original: Any) -> Any:
    return lambda self, values: [value * self.world.data.size for value in values]


def every_copy_of_loss(original: Any) -> Any:
    return lambda self, sums: self.world.sum(sums)


def first_dropped(original: Any) -> Any:
    """What earlier micro-batches left in the gathered weights is dropped before the last one."""

    def mutant(self: DecoderPart, last: bool) -> None:
        original(self, last)
        for stage in self.modules.values() if last else ():
            for state in fully_shard.state(stage)._state_ctx.all_states:  # type: ignore[attr-defined]
                for group in state._fsdp_param_groups:
                    for each in group.fsdp_params:
                        each._unsharded_param.grad = None

    return mutant


def sum_of_all_to_first(original: Any) -> Any:
    """A rank of the two has twice its own in the place of the sum."""

    def mutant(found: list[Tensor], peers: Peers) -> None:
        own = [gradient.clone() for gradient in found]
        original(found, peers)
        if peers.index:
            for gradient, mine in zip(found, own, strict=True):
                gradient.copy_(peers.size * mine)

    return mutant


def silent(tensor: Tensor, *args: Any, **more: Any) -> None:
    """An all-reduce that is not made."""


MUTANTS = [
    Mutant(
        "gradients not added up over dp",
        "Copies of the model drift apart: a parameter that the data-parallel wrapper did not see.",
        "dense",
        "gradient",
        part,
        "holdings",
        declared(without("dp")),
    ),
    Mutant(
        "norm gradients not added up over tp",
        "With sequence parallelism each tensor rank has other tokens; the gradients of norms need a sum of "
        "their own (arXiv 2205.05198, section 4.2.2).",
        "dense",
        "gradient",
        part,
        "holdings",
        declared(without("tp")),
    ),
    Mutant(
        "gradients added up over dp in the place of cp",
        "A process group taken from the wrong axis of the mesh.",
        "experts",
        "gradient",
        part,
        "holdings",
        declared(wrong_axis),
    ),
    Mutant(
        "gradients added up twice",
        "A hook of the wrapper and the step itself both reduce (torch #160285 is of this family).",
        "dense",
        "gradient",
        part,
        "add_up_gradients",
        twice,
    ),
    Mutant(
        "last of a bucket not added up",
        "An off-by-one at the end of a bucket leaves one tensor out.",
        "dense",
        "gradient",
        gradients,
        "_sum",
        last_group_only,
    ),
    Mutant(
        "copies not the same after the sum",
        "One rank keeps its own gradient: copies drift apart though rank 0's loss of this step is right.",
        "dense",
        "loss",
        gradients,
        "_sum",
        sum_of_all_to_first,
    ),
    Mutant(
        "shared heads' gradients added up over all tensor ranks",
        "Key/value heads are replicated in groups of ranks; the sum is taken over all (GQA with tp above the "
        "number of key/value heads).",
        "heads",
        "gradient",
        gradients,
        "_sum_neighbours",
        all_tensor_ranks,
    ),
    Mutant(
        "shared heads' gradients not added up",
        "Each rank trains its own copy of a key/value head.",
        "heads",
        "gradient",
        gradients,
        "_sum_neighbours",
        lambda original: lambda rows, peers, every: None,
    ),
    Mutant(
        "norm counts each copy",
        "What several ranks hold counts once for each: clipping by a norm that grows with the layout (ROCm "
        "TransformerEngine #715: inflated by 1.36 to 1.52).",
        "dense",
        "norm",
        Holding,
        "copies",
        lambda original: lambda self, grid: 1,
    ),
    Mutant(
        "norm counts shared heads for each rank",
        "The same for the rows of key/value heads that stand on several ranks.",
        "heads",
        "norm",
        part,
        "squared_norm",
        without_shared,
    ),
    Mutant(
        "norm counts a tied weight twice",
        "Both ends of the pipeline hold the embedding (Megatron-LM keeps a flag `shared` for it).",
        "pipeline",
        "norm",
        part,
        "squared_norm",
        lambda original: lambda parameters, held, mesh, twice: original(parameters, held, mesh),
    ),
    Mutant(
        "norm of one stage",
        "Clipping ignored pipeline stages (torchtitan #596).",
        "pipeline",
        "norm",
        World,
        "sum",
        of_one_stage,
    ),
    Mutant(
        "norm of experts as if all ranks held them",
        "The norm of expert gradients is taken over the dense group (Megatron-LM #5916: undercounted under "
        "expert x tensor).",
        "experts",
        "norm",
        Holding,
        "copies",
        lambda original: (
            lambda self, grid: original(
                replace(self, cut=tuple(axis for axis in self.cut if axis not in ("ep", "etp"))), grid
            )
        ),
    ),
    Mutant(
        "micro-batch lost",
        "The last micro-batch adds nothing (an off-by-one of the accumulation).",
        "dense",
        "gradient",
        LaidOutPasses,
        "_load",
        last_lost,
    ),
    Mutant(
        "rows taken twice",
        "Ranks get equally many rows, the first ones again where the step's do not divide "
        "(torch.utils.data.DistributedSampler without drop_last).",
        "dense",
        "loss",
        layouts,
        "split",
        some_twice,
    ),
    Mutant(
        "mean of the ranks' means",
        "The loss is divided by each rank's own count of tokens (transformers #34191: losses that change "
        "with accumulation).",
        "dense",
        "gradient",
        LaidOutPasses,
        "total",
        mean_of_means,
    ),
    Mutant(
        "loss counted by each tensor rank",
        "All tensor ranks have the loss of the same tokens, and all add it.",
        "dense",
        "loss",
        LaidOutPasses,
        "_sum_losses",
        every_copy_of_loss,
    ),
    Mutant(
        "mean over sharding ranks",
        "fully_shard divides by the ranks, though the loss is normalised by global counts already.",
        "sharded",
        "gradient",
        FSDPModule,
        "set_gradient_divide_factor",
        lambda original: lambda self, factor: None,
    ),
    Mutant(
        "gradients before the last micro-batch lost",
        "What was left in gathered weights goes with them (torch 2.13 between the halves of a backward; see "
        "parallel.sharded).",
        "sharded",
        "gradient",
        DecoderPart,
        "last_pass",
        first_dropped,
    ),
    Mutant(
        "no sum over copies of shards",
        "Hybrid sharding without the sum over dp: shards of two copies go their own ways.",
        "hybrid",
        "gradient",
        dist,
        "all_reduce",
        lambda original: (
            lambda tensor, *args, **more: (
                silent(tensor) if tensor.ndim and tensor.numel() > 8 else original(tensor, *args, **more)
            )
        ),
    ),
]
