"""Tensor and sequence parallelism, put on a decoder whose weights are already cut.

Each attention and each feed-forward begins by fetching the tokens of its tensor ranks and ends by adding up
and sharing out again; norms and residuals between them see this rank's tokens only. Without `sequence` every
rank has all tokens, and both ends are the f and g of arXiv 1909.08053: two sums forward and two backward a
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.layout.holding import Holding
from shunter.layout.piece import balanced
from shunter.models.adapter import AdaptedLinear
from shunter.models.decoder import Attention, Decoder
from shunter.models.sharding import kv_heads
from shunter.models.swiglu import SwiGLU
from shunter.parallel.collective import add_up, gather, part, scatter_sum, spread
from shunter.parallel.mesh import Peers

ROWS = 1  # dim of the tokens in [B, T, D]


class Tokens:
    """How tokens travel into a region of cut weights and out of it."""

    def __init__(self, peers: Peers, sequence: bool) -> None:
        self.peers, self.sequence = peers, sequence

    def enter(self, x: Tensor) -> Tensor:
        """[B, T, D] for the cut weights from this rank's [B, T / tp, D] (or from all, without `sequence`)."""
        return gather(x, ROWS, self.peers) if self.sequence else spread(x, self.peers)

    def leave(self, x: Tensor) -> Tensor:
        """The way back, with the ranks' parts of a sum added up."""
        return scatter_sum(x, ROWS, self.peers) if self.sequence else add_up(x, self.peers)

    def mine(self, x: Tensor) -> Tensor:
        """This rank's tokens of x [B, T, ..], which all ranks have."""
        return part(x, ROWS, self.peers) if self.sequence else x


class VocabularyRows:
    """The other rows of a vocabulary cut over `peers`; see models.head.Others."""

    def __init__(self, begin: int, peers: Peers, words: int) -> None:
        """words: of the whole vocabulary."""
        self.begin, self.peers, self.rows = begin, peers, -(-words // peers.size)

    def largest(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.peers.group)
        return values

    def total(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.peers.group)
        return values


class CutEmbedding(nn.Module):
    """The rows [begin, begin + v) of an embedding; ids beyond them are other ranks'."""

    def __init__(self, weight: nn.Parameter, begin: int, tokens: Tokens) -> None:
        super().__init__()
        self.weight, self.begin, self.tokens = weight, begin, tokens

    def forward(self, ids: Tensor) -> Tensor:
        row = ids - self.begin
        own = (row >= 0) & (row < len(self.weight))
        found = F.embedding(row.clamp(0, len(self.weight) - 1), self.weight) * own[..., None]
        return self.tokens.leave(found)


def split_tensor(
    decoder: Decoder, held: Mapping[str, Holding], peers: Peers, *, sequence: bool = True
) -> Tokens | None:
    """Let the decoder compute with its parts over `peers`. Its parameters are those parts already.

    Returns how the last hidden states come to the head; None for one rank alone.
    """
    tokens = split_layers(decoder, peers, sequence=sequence)
    split_embedding(decoder, held, tokens)
    return tokens


def split_embedding(decoder: Decoder, held: Mapping[str, Holding], tokens: Tokens | None) -> None:
    """The same of the embedding alone. tokens: how they come out of it; None: it is whole."""
    if tokens is not None and "embed.weight" in held:  # else another stage has it
        begin = first_row(held["embed.weight"])
        decoder.embed = CutEmbedding(decoder.embed.weight, begin, tokens)  # type: ignore[assignment, arg-type]


def split_layers(layers: nn.Module, peers: Peers, *, sequence: bool = True) -> Tokens | None:
    """The same of some layers, or all. Returns how tokens come into their products and out of them."""
    if peers.size == 1:
        return None
    tokens = Tokens(peers, sequence)
    for module in layers.modules():
        if isinstance(module, Attention):
            spec = module.spec
            low, high = kv_heads(spec, peers.index, peers.size)
            module.num_heads, module.num_kv_heads = spec.num_heads // peers.size, high - low
            module.first = module.num_heads * peers.index
            if isinstance(module.qkv, AdaptedLinear):
                key = module.num_kv_heads * spec.head_dim
                module.qkv.place({"q": module.num_heads * spec.head_dim, "k": key, "v": key})
        if isinstance(module, SwiGLU):
            module.first = balanced(module.width, peers.size, peers.index)[0]
        if isinstance(module, SwiGLU) and isinstance(module.gate_up, AdaptedLinear):
            half = module.gate_up.frozen.shape[0] // 2
            module.gate_up.place({"gate": half, "up": half})
        if isinstance(module, Attention | SwiGLU):
            module.register_forward_pre_hook(_enters(tokens))
            module.register_forward_hook(_leaves(tokens))
    return tokens


def first_row(holding: Holding) -> int:
    """Of a part that is cut by rows."""
    return holding.piece.ranges[0][0][0] if holding.piece.ranges[0] else 0


def _enters(tokens: Tokens) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (tokens.enter(inputs[0]), *inputs[1:])

    return hook


def _leaves(tokens: Tokens) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return tokens.leave(output)

    return hook


def whole_tokens(tokens: Tokens | None, x: Tensor) -> Tensor:
    """x [B, t, D] as the cut head needs it."""
    return x if tokens is None else tokens.enter(x)
