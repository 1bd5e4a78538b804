"""Attention with the heads spread instead of the tokens: DeepSpeed-Ulysses (arXiv 2309.14509).

An exchange gives each rank some heads of all tokens, in their natural order, so that any kernel serves; a
second one brings the outputs back. A rank receives the key/value heads that its query heads need: with fewer
of them than ranks, or where groups do not end with a rank's heads, some are sent to several ranks, and their
gradients are added up where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.context_traffic import kv_heads_of, query_heads
from shunter.parallel.context.zigzag import in_order, in_parts
from shunter.parallel.mesh import Peers


def ulysses(
    q: Tensor, k: Tensor, v: Tensor, peers: Peers, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """q [B, H, t, d], k and v [B, K, t, d] of this rank's tokens; returns [B, H, t, d].

    kernel: attention over whole rows in natural order, its key/value heads as many as its query heads or a
    divisor of them.
    """
    heads, kv_heads, size = q.shape[1], k.shape[1], peers.size
    mine, group = query_heads(heads, size), heads // kv_heads
    wanted: list[int] = []
    counts = []
    for index in range(size):
        needed = kv_heads_of(index, heads, kv_heads, size)
        wanted += range(index * mine, (index + 1) * mine)
        wanted += [heads + head for head in needed]
        wanted += [heads + kv_heads + head for head in needed]
        counts.append(mine + 2 * len(needed))
    pick = torch.tensor(wanted, device=q.device)
    packed = torch.cat([q, k, v], dim=1).transpose(0, 1).index_select(0, pick)
    own = kv_heads_of(peers.index, heads, kv_heads, size)
    parts = _Exchange.apply(packed, counts, [counts[peers.index]] * size, peers)
    rows = in_order(parts.unflatten(0, (size, -1)), 2).transpose(0, 1)  # [B, heads, T, d]
    q, k, v = rows.split([mine, len(own), len(own)], dim=1)
    heard = [(peers.index * mine + head) // group - own.start for head in range(mine)]
    if mine % len(own) or heard != [head * len(own) // mine for head in range(mine)]:
        # Groups of different sizes: each query head gets its key/value head.
        repeat = torch.tensor(heard, device=q.device)
        k, v = k.index_select(1, repeat), v.index_select(1, repeat)
    out = kernel(q, k, v)  # [B, mine, T, d]
    sent = in_parts(out.transpose(0, 1), size, 2).flatten(0, 1)  # [n * mine, B, t, d]
    back: Tensor = _Exchange.apply(sent, [mine] * size, [mine] * size, peers)
    return back.transpose(0, 1)


class _Exchange(torch.autograd.Function):
    """All-to-all along the first dim, and the same backwards for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Sequence[int], taken: Sequence[int], peers: Peers) -> Tensor:
        ctx.given, ctx.taken, ctx.peers = given, taken, peers
        return _exchange(x, given, taken, peers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _exchange(grads[0], ctx.taken, ctx.given, ctx.peers), None, None, None


def _exchange(x: Tensor, given: Sequence[int], taken: Sequence[int], peers: Peers) -> Tensor:
    out = x.new_empty(sum(taken), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(taken), list(given), group=peers.group)
    return out
