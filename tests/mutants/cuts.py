"""Matrices cut wrongly, rows spread wrongly, stages that meet wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.layout.holding import Holding
from shunter.models import sharding
from shunter.models.decoder import Decoder
from shunter.parallel import collective, part, tensor
from shunter.parallel import decoder as stages
from shunter.parallel.context import blockwise, ulysses
from shunter.parallel.context.sight import Sight, Tile
from shunter.parallel.recompute import _Again
from shunter.parallel.tensor import CutEmbedding, Tokens, VocabularyRows
from shunter.train import pipeline
from shunter.train.pipeline import LaidOutPasses
from tests.mutants.mutant import Mutant


def swapped(original: Any) -> Any:
    return lambda self, x: collective.add_up(x, self.peers)


def own_part(original: Any) -> Any:
    def mutant(ctx: Any, *grads: Any) -> Any:
        if ctx.back:
            return original(ctx, *grads)
        return grads[0].tensor_split(ctx.peers.size, ctx.dim)[ctx.peers.index], None, None, None

    return mutant


def one_block(original: Any) -> Any:
    def mutant(spec: Any, whole: Holding, index: int, parts: int) -> Holding:
        return Holding(whole.piece.share(0, index, parts), whole.partial, ("tp",))

    return mutant


def gate_and_up_as_one(original: Any) -> Any:
    def mutant(spec: Any, name: str, whole: Holding, index: int, parts: int, sequence: bool) -> Holding:
        found = original(spec, name, whole, index, parts, sequence)
        if not name.endswith(".gate_up.weight"):
            return found
        size = found.piece.local_shape[0]  # as many rows, so that nothing breaks; of two ranks
        begin = whole.piece.shape[0] - size if index else 0
        return Holding(whole.piece.take(0, (begin, begin + size)), whole.partial, ("tp",))

    return mutant


def head_modulo(original: Any) -> Any:
    def mutant(spec: Any, index: int, parts: int) -> tuple[int, int]:
        head = index % spec.num_kv_heads
        return (head, head + 1) if parts > spec.num_kv_heads else original(spec, index, parts)

    return mutant


def floor_of_rows(original: Any) -> Any:
    def mutant(held: Holding) -> int:
        begin = original(held)
        return begin - (begin > 0)

    return mutant


def unmasked(self: CutEmbedding, ids: Tensor) -> Tensor:
    row = (ids - self.begin).clamp(0, len(self.weight) - 1)
    return self.tokens.leave(F.embedding(row, self.weight))


def z_for_each(original: Any) -> Any:
    def mutant(*args: Any, z_loss: float, others: Any, **more: Any) -> Any:
        return original(*args, z_loss=z_loss * (others.peers.size if others else 1), others=others, **more)

    return mutant


def top_left(original: Any) -> Any:
    def mutant(self: Sight, tile: Tile) -> Tensor:
        seen = original(self, tile)
        return seen & torch.ones(len(tile.rows), len(tile.columns), dtype=torch.bool).tril()

    return mutant


def unweighted(original: Any) -> Any:
    def mutant(self: Any, mine: slice, out: Tensor, lse: Tensor) -> None:
        kept, known = self.out[:, :, mine], self.lse[:, :, mine]
        share = torch.where(known == -torch.inf, 1.0, 0.5) * (lse > -torch.inf)
        kept.lerp_(out, share[..., None].to(out.dtype))
        known.copy_(torch.logaddexp(known, lse))

    return mutant


def own_lse(original: Any) -> Any:
    """The gradient of a tile with the log-sum-exp of that tile alone."""

    def mutant(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, mask: Any) -> Any:
        _, alone = blockwise.kernels.forward(q, k, v, causal, mask)
        alone = torch.where(alone == -torch.inf, lse, alone)
        return original(grad, q, k, v, out, alone, causal, mask)

    return mutant


def in_one_piece(original: Any) -> Any:
    def mutant(decoder: Decoder, peers: Any, length: int, kind: Any) -> Tensor:
        original(decoder, peers, length, kind)
        return torch.arange(length).tensor_split(peers.size)[peers.index]

    return mutant


def from_zero(original: Any) -> Any:
    def mutant(self: Decoder, positions: Tensor, segments: Any, dtype: Any) -> Any:
        return original(self, torch.arange(positions.shape[1]).expand_as(positions), segments, dtype)

    return mutant


def segments_of_part(original: Any) -> Any:
    def mutant(length: int, size: int, segments: Tensor, window: int | None) -> Any:
        return original(length, size, segments[:, : length // size].repeat(1, size), window)

    return mutant


def others_lost(original: Any) -> Any:
    def mutant(self: Any, columns: range, k: Tensor, v: Tensor, back_k: Tensor, back_v: Tensor) -> None:
        original(self, columns, k, v, back_k, back_v)
        if columns not in self.spans:
            back_k.zero_()
            back_v.zero_()

    return mutant


def other_order(original: Any) -> Any:
    def mutant(self: LaidOutPasses, batches: Any, factors: Any, *more: Any) -> None:
        last = self.world.stage == self.order.placement[-1]
        original(self, batches[::-1] if last else batches, factors[::-1] if last else factors, *more)

    return mutant


def first_end_only(original: Any) -> Any:
    """The last stage keeps its own gradient: both ends meet, but only one takes the sum."""

    def mutant(self: LaidOutPasses) -> None:
        own = self.parameters["embed.weight"].grad if self.shares_tied else None
        mine = None if own is None else own.clone()
        original(self)
        if mine is not None and self.world.stage:
            self.parameters["embed.weight"].grad = mine

    return mutant


def other_rotation(original: Any) -> Any:
    """The second time a layer is computed, its tokens stand elsewhere."""

    def mutant(self: _Again, *inputs: Any) -> Any:
        plain, runs = self.plain, []

        def changed(x: Tensor, rope: tuple[Tensor, Tensor], *rest: Any) -> Any:
            runs.append(1)
            return plain(x, rope if len(runs) == 1 else (rope[0], -rope[1]), *rest)

        self.plain = changed
        try:
            return original(self, *inputs)
        finally:
            self.plain = plain

    return mutant


def unchanged(original: Any) -> Any:
    return lambda self, values: values


def nothing(original: Any) -> Callable[..., None]:
    return lambda *args, **more: None


MUTANTS = [
    Mutant(
        "f and g swapped",
        "The sum stands before the cut products and not behind them (arXiv 1909.08053, figure 3).",
        "plain",
        "loss",
        Tokens,
        "enter",
        swapped,
    ),
    Mutant(
        "no sum behind row-cut products",
        "The second product's parts are never added up.",
        "plain",
        "loss",
        Tokens,
        "leave",
        unchanged,
    ),
    Mutant(
        "backward of f is the identity",
        "The gradient of what all tensor ranks read is one rank's part of it.",
        "plain",
        "gradient",
        tensor,
        "spread",
        lambda original: lambda x, peers: x,
    ),
    Mutant(
        "g adds up backwards too",
        "torch.distributed.nn's all_reduce adds gradients up as well: right for parts, t times too much for "
        "what all ranks have.",
        "plain",
        "gradient",
        collective._AddUp,
        "backward",
        lambda original: lambda ctx, *grads: (2 * grads[0], None),  # the same on the two ranks
    ),
    Mutant(
        "gather's gradient not added up",
        "The backward of the gather takes this rank's slice of its own gradient, not of the sum.",
        "dense",
        "gradient",
        collective._Gather,
        "backward",
        own_part,
    ),
    Mutant(
        "q, k and v cut as one block",
        "A fused [Q|K|V] cut by rows gives the first rank queries alone (Megatron-LM interleaves by head).",
        "plain",
        "loss",
        sharding,
        "_qkv",
        one_block,
    ),
    Mutant(
        "gate and up cut as one block",
        "The same for the fused SwiGLU: the first rank gets the gate, the second the up.",
        "plain",
        "loss",
        sharding,
        "_tensor",
        gate_and_up_as_one,
    ),
    Mutant(
        "key/value head of the wrong rank",
        "Replicated heads dealt out modulo their number: `repeat` in the place of `repeat_interleave`.",
        "heads",
        "loss",
        sharding,
        "kv_heads",
        head_modulo,
    ),
    Mutant(
        "head's vocabulary offset rounded down",
        "The first row of a part is taken as index x (V // tp) where V does not divide (Megatron-LM #1754).",
        "dense",
        "loss",
        part,
        "first_row",
        floor_of_rows,
    ),
    Mutant(
        "embedding's vocabulary offset rounded down",
        "The same at the other end.",
        "dense",
        "loss",
        tensor,
        "first_row",
        floor_of_rows,
    ),
    Mutant(
        "embedding of others' tokens not masked",
        "Each rank adds some row for tokens that are not its own, as a bias that every rank of a row-cut "
        "product adds counts t times.",
        "dense",
        "loss",
        CutEmbedding,
        "forward",
        lambda original: unmasked,
    ),
    Mutant(
        "largest logit of one part",
        "The cut softmax subtracts each rank's own maximum, and adds sums of different scales.",
        "dense",
        "loss",
        VocabularyRows,
        "largest",
        unchanged,
    ),
    Mutant(
        "sum of one part's exponentials",
        "The cut softmax normalises over this rank's rows only.",
        "dense",
        "loss",
        VocabularyRows,
        "total",
        unchanged,
    ),
    Mutant(
        "z-loss counted by each tensor rank",
        "A term of the loss that all tensor ranks compute alike is added up over them.",
        "dense",
        "loss",
        stages,
        "linear_cross_entropy",
        z_for_each,
    ),
    Mutant(
        "top-left causal mask",
        "A rectangle of scores masked from its own corner: torch's is_causal for queries that begin later.",
        "ring",
        "loss",
        Sight,
        "mask",
        top_left,
    ),
    Mutant(
        "parts of a softmax averaged",
        "Outputs of blocks of keys are added without the correction by their log-sum-exp.",
        "ring",
        "loss",
        blockwise.Forward,
        "_merge",
        unweighted,
    ),
    Mutant(
        "backward with a block's own log-sum-exp",
        "Probabilities of the backward are normalised over one block's keys.",
        "ring",
        "gradient",
        blockwise.kernels,
        "backward",
        own_lse,
    ),
    Mutant(
        "rows not in zigzag order",
        "Attention balances the load by zigzag, the loader deals out rows in one piece.",
        "ring",
        "loss",
        pipeline,
        "spread_rows",
        in_one_piece,
    ),
    Mutant(
        "positions counted from a rank's first token",
        "Rotary positions of a part begin at 0 on every context rank.",
        "ring",
        "loss",
        Decoder,
        "geometry",
        from_zero,
    ),
    Mutant(
        "documents of the local part",
        "Document boundaries of one part are taken for those of the row.",
        "ring",
        "loss",
        pipeline,
        "ContextSight",
        segments_of_part,
    ),
    Mutant(
        "gradients of travelling keys lost",
        "Keys and values get the gradient of their owner's queries only.",
        "ring",
        "gradient",
        blockwise.Backward,
        "visit",
        others_lost,
    ),
    Mutant(
        "parts put together in the order of ranks",
        "Ulysses exchanges heads for tokens, and takes zigzag parts for neighbours.",
        "ulysses",
        "loss",
        ulysses,
        "in_order",
        lambda original: lambda parts, dim: torch.cat(list(parts), dim),
    ),
    Mutant(
        "last stage reads another micro-batch",
        "Stages walk micro-batches in different orders; targets belong to other hidden states.",
        "pipeline",
        "loss",
        LaidOutPasses,
        "_load",
        other_order,
    ),
    Mutant(
        "recomputed with other positions",
        "What a layer is given has changed by the time that it is computed again (a buffer used once more).",
        "recomputed",
        "gradient",
        _Again,
        "__call__",
        other_rotation,
    ),
    Mutant(
        "tied gradient not added",
        "The two ends of a tied weight train apart (Megatron-LM reduces over the embedding group).",
        "pipeline",
        "gradient",
        LaidOutPasses,
        "_add_tied",
        nothing,
    ),
    Mutant(
        "tied gradient added at one end",
        "The last stage keeps its own gradient: the saved weight is right for a step, the head's is not.",
        "pipeline",
        "loss",
        LaidOutPasses,
        "_add_tied",
        first_end_only,
    ),
]
