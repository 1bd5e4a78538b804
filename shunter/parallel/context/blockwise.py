"""Attention over keys that come piece by piece, and its gradients (arXiv 2205.14135, algorithms 1 and 4).

Shapes: q [B, H, t, d] local queries that stand at `spans` of the whole row, one span after the other; k and v
[B, K, c, d] of one span of keys. Sums are kept in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.parallel.context import kernels
from shunter.parallel.context.sight import Sight, Tile


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over tiles are kept in, and what gradients of keys travel in."""
    return torch.promote_types(dtype, torch.float32)


class Forward:
    """Outputs so far, and the log-sum-exp that they belong to."""

    def __init__(self, q: Tensor, spans: Sequence[range], sight: Sight) -> None:
        self.q, self.spans, self.sight = q, spans, sight
        self.out = torch.zeros_like(q, dtype=wide(q.dtype))
        self.lse = torch.full(q.shape[:3], -torch.inf, dtype=self.out.dtype, device=q.device)

    def visit(self, columns: range, k: Tensor, v: Tensor) -> None:
        """Take the keys that stand at `columns` in. Those that a query shares its place with come first."""
        for tile, mine, other, mask in _tiles(self.spans, columns, self.sight, self.q.device):
            out, lse = kernels.forward(self.q[:, :, mine], k[:, :, other], v[:, :, other], tile.causal, mask)
            self._merge(mine, out, lse)

    def _merge(self, mine: slice, out: Tensor, lse: Tensor) -> None:
        """Two softmaxes over different keys become the one over all of them.

        Written with the sigmoid of the difference, which is 1 for the first tile and 0 for one that a query
        sees nothing of.
        """
        kept, known = self.out[:, :, mine], self.lse[:, :, mine]
        share = torch.sigmoid(lse - known)
        kept.lerp_(out.to(kept.dtype), share[..., None])
        known.copy_(torch.logaddexp(known, lse))

    def result(self) -> tuple[Tensor, Tensor]:
        """Output in the dtype of q, log-sum-exp in float32 at least."""
        return self.out.to(self.q.dtype), self.lse


class Backward:
    """The gradient of the queries so far; what belongs to keys is handed out as it comes."""

    def __init__(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, spans: Sequence[range], sight: Sight
    ) -> None:
        self.grad, self.q, self.out, self.lse = grad.contiguous(), q, out, lse
        self.spans, self.sight = spans, sight
        self.back = torch.zeros_like(q, dtype=wide(q.dtype))

    def visit(self, columns: range, k: Tensor, v: Tensor, back_k: Tensor, back_v: Tensor) -> None:
        """Add the keys' gradients to back_k and back_v [B, K, c, d], which are float32 at least."""
        for tile, mine, other, mask in _tiles(self.spans, columns, self.sight, self.q.device):
            found = kernels.backward(
                self.grad[:, :, mine],
                self.q[:, :, mine],
                k[:, :, other],
                v[:, :, other],
                self.out[:, :, mine],
                self.lse[:, :, mine],
                tile.causal,
                mask,
            )
            for into, part in zip(
                (self.back[:, :, mine], back_k[:, :, other], back_v[:, :, other]), found, strict=True
            ):
                into += part

    def result(self) -> Tensor:
        """The gradient of q."""
        return self.back.to(self.q.dtype)


def _tiles(
    spans: Sequence[range], columns: range, sight: Sight, device: torch.device
) -> Iterator[tuple[Tile, slice, slice, Tensor | None]]:
    """Tiles of all spans of queries with some keys: where they stand here, and their masks."""
    offset = 0
    for span in spans:
        for tile in sight.tiles(span, columns):
            mine = _local(tile.rows, span, offset)
            other = _local(tile.columns, columns, 0)
            yield tile, mine, other, sight.mask(tile).to(device) if tile.masked else None
        offset += len(span)


def _local(part: range, span: range, offset: int) -> slice:
    return slice(offset + part.start - span.start, offset + part.stop - span.start)


def whole(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """Attention over whole rows [B, H, T, d] in natural order, by one rank for some of the heads."""
    if sight.plain:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return _Whole.apply(q, k, v, sight)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        span = range(sight.length)
        run = Forward(q, [span], sight)
        run.visit(span, k, v)
        out, lse = run.result()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.sight = sight
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        span = range(ctx.sight.length)
        run = Backward(grads[0], q, out, lse, [span], ctx.sight)
        back_k, back_v = (torch.zeros_like(x, dtype=wide(x.dtype)) for x in (k, v))
        run.visit(span, k, v, back_k, back_v)
        return run.result(), back_k.to(k.dtype), back_v.to(v.dtype), None
