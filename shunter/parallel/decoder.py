"""A decoder's stages: consecutive layers, with the embedding before the first and the head after the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder, embedded
from shunter.models.head import Others, linear_cross_entropy
from shunter.models.segments import SegmentPlan
from shunter.parallel.stage import LOSS
from shunter.parallel.tensor import Tokens, whole_tokens
from shunter.parallel.tree import Tree
from shunter.parallel.turns import Turns


@dataclass(frozen=True)
class View:
    """A micro-batch as layers under another grid see it: positions [B, T] of their tokens, and documents.

    tokens, targets, coefficients [B, T]: where embedding and head have that grid.
    """

    positions: Tensor
    plan: SegmentPlan
    tokens: Tensor | None = None
    targets: Tensor | None = None
    coefficients: Tensor | None = None


@dataclass
class Rows:
    """A micro-batch on the device: tokens, positions, targets, coefficients [B, T], and its documents.

    The last stage leaves the sum of coefficient x log-probability, without the z-loss, in `plain`.
    views, turns: of other grids that some layers have, and how hidden states come there.
    head: what the last stage does with its hidden states [B, t, D] instead of cross-entropy; returns a scalar
    whose backward is called with 1.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    coefficients: Tensor
    plan: SegmentPlan
    z_loss: float = 0.0
    plain: Tensor | None = None
    views: Mapping[Grid, View] = field(default_factory=dict)
    turns: Turns | None = None
    head: Callable[[DecoderStage, Tensor, Rows], Tensor] | None = None

    def seen(self, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor, SegmentPlan]:
        """Tokens, targets, coefficients and documents as embedding and head see them under a grid."""
        if grid is None:
            return self.tokens, self.targets, self.coefficients, self.plan
        view = self.views[grid]
        assert view.tokens is not None
        assert view.targets is not None
        assert view.coefficients is not None
        return view.tokens, view.targets, view.coefficients, view.plan


class DecoderStage(nn.Module):
    """Layers `begin` to `end` of a decoder, whose parameters it shares.

    Takes `hidden` [B, T, D] (the first stage: tokens) and returns it, or the loss of the rows at the last.
    layers_only: embedding and head are done elsewhere, so that every stage takes `hidden` and returns it.
    tokens, others: how the last hidden states come to a head that is cut over tensor ranks, and who has the
    other rows of the vocabulary.
    grids: of each layer, where it is not the layout's own (None), which what is sent between stages always
    has. ends: of embedding, last norm and head, likewise.
    """

    def __init__(self, decoder: Decoder, begin: int, end: int, *, layers_only: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(decoder.layers[begin:end])
        self.is_first = begin == 0
        self.grids: list[Grid | None] = [None] * (end - begin)
        self.ends: Grid | None = None
        self.has_head = end == len(decoder.layers) and not layers_only
        self.embed = decoder.embed if begin == 0 and not layers_only else None
        self.norm = decoder.norm if end == len(decoder.layers) else None
        # A child, so that whoever gathers a stage's weights finds the head among them; a tied one stands at
        # both ends.
        self.head = (decoder.head or decoder.embed) if self.has_head else None
        self.tokens: Tokens | None = None
        self.others: Others | None = None
        # What the head gathers cannot go to the weight at once where its gradient has to be shared out.
        self.into_grad = True
        # Not a child: the names are the whole model's.
        self._decoder = [decoder]

    def owned(self) -> list[str]:
        """Names, in the decoder, of the parameters and buffers that this stage computes with."""
        mine = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        stored = self._decoder[0].state_dict(keep_vars=True)
        return [name for name, tensor in stored.items() if id(tensor) in mine]

    def forward(self, inputs: Tree, rows: Rows) -> Tree:
        tokens, targets, coefficients, plan = rows.seen(self.ends)
        x = inputs["hidden"] if self.embed is None else self.embed(tokens)
        if self.is_first:
            x = embedded(x, plan)
        x = self._through_layers(x, rows)
        if self.norm is not None:
            x = self.norm(x)
        if not self.has_head:
            return {"hidden": x}
        assert self.head is not None
        if rows.head is not None:
            return {LOSS: rows.head(self, x, rows)}
        factors = coefficients.flatten()
        loss, logprobs = linear_cross_entropy(
            whole_tokens(self.tokens, x).flatten(0, 1),
            self.head.weight,
            targets.flatten(),
            factors,
            z_loss=rows.z_loss,
            into_grad=self.into_grad,
            others=self.others,
        )
        rows.plain = (factors.double() * logprobs.double()).sum() if rows.z_loss else loss.detach()
        return {LOSS: loss}

    def _through_layers(self, x: Tensor, rows: Rows) -> Tensor:
        at = self.ends if self.embed is not None else None
        shared: dict[Grid | None, tuple[Any, ...]] = {}
        for layer, grid in zip(self.layers, self.grids, strict=True):
            if grid != at:
                assert rows.turns is not None
                x, at = rows.turns(x, at, grid), grid
            if grid not in shared:
                view: Rows | View = rows if grid is None else rows.views[grid]
                geometry = self._decoder[0].geometry(view.positions, view.plan, x.dtype)
                shared[grid] = view.plan, *geometry
            plan, rope, mask = shared[grid]
            x = layer(x, rope, plan, mask, None)
        out = self.ends if self.has_head else None
        if at != out:
            assert rows.turns is not None
            x = rows.turns(x, at, out)
        return x


def decoder_stages(
    decoder: Decoder, cut: Sequence[int], stages: Sequence[int], *, layers_only: bool = False
) -> dict[int, DecoderStage]:
    """Those of the numbers `stages`."""
    return {
        number: DecoderStage(decoder, cut[number], cut[number + 1], layers_only=layers_only)
        for number in stages
    }


def drop_others(decoder: Decoder, owned: set[str]) -> None:
    """Free all parameters and buffers but those: the rest of the model belongs to other ranks.

    They stay in place on the meta device, so that names and shapes are still the whole model's.
    """
    for name, parameter in list(decoder.named_parameters()):
        if name not in owned:
            parent = decoder.get_submodule(name.rpartition(".")[0])
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            setattr(parent, name.rpartition(".")[2], empty)
    for name, buffer in list(decoder.named_buffers()):
        if name not in owned:
            parent = decoder.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.empty_like(buffer, device="meta"))
